"""A search on a real Ray: finds better settings, goes on where a kill left it, tells what can't be done."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import ray

from recsys.errors import DataError, RecsysError, SettingsError, UnavailableError
from recsys.interactions import Interactions, Timing
from recsys.models.factors.svd import Svd
from recsys.models.held_out import validation_slice
from recsys.models.item_to_item.covisitation import Covisitation
from recsys.models.item_to_item.ease import Ease
from recsys.models.search_space import Choice, Space
from recsys.models.threads import available_threads
from recsys.training.search import Search, Trial
from recsys.training.tuning import _Halving, even_shares, run_trials
from tests.contracts.retrieval_model import log_of, pairs

pytestmark = pytest.mark.usefixtures("workers_get_this_module_by_value")
ROOT = Path(__file__).parents[2]
BUDGET: dict[str, Any] = {"minutes": 2, "memory_mb": 350}  # two at once, as workers start slowly


@dataclass(frozen=True, slots=True)
class Odd(Ease):
    """EASE whose fit does what its setting says."""

    does: str = "fits"

    space: ClassVar[Space] = {"does": Choice(("fits",))}

    def fit(self, data: Interactions, *, seed: int, **given: Any) -> Any:
        if self.does == "raises":
            raise DataError("no data for this one")
        if self.does == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "lasts":
            time.sleep(5)
        if self.does == "counts":
            raise DataError(f"{available_threads()} threads")
        return Ease.fit(self, data, seed=seed)


def search_of(model: Any, *, space: Space | None = None, timing: Timing = Timing.NONE) -> Search:
    data, held_out = validation_slice(log_of(*pairs(), timing), seed=0)
    return Search(model, model.space if space is None else space, data, held_out, 1)


def test_better_settings_are_found_and_what_ended_is_not_run_again(ray_cluster: None, tmp_path: Path) -> None:
    search = search_of(Covisitation(damping=9.0, neighbors=1), space={"neighbors": Choice((20, 40))})
    told: list[tuple[int, int]] = []
    given: dict[str, Any] = BUDGET | {"folder": tmp_path, "ended": lambda t, n: told.append((t.number, n))}
    trials = run_trials(search, trials=3, **given)
    best, default = search.best(trials), next(trial for trial in trials if trial.number == 0)
    assert default.whole, "there must be something to compare with"
    assert best.values[-1] > default.values[-1] + 0.05
    assert best.settings["neighbors"] in (20, 40)
    assert sorted(number for number, _ in told) == [0, 1, 2]
    assert [count for _, count in told] == [1, 2, 3]
    again = run_trials(search, trials=4, **given)
    assert again[:3] == trials
    assert [trial.number for trial in again[3:]] == [3]
    assert len(told) == 4
    for other in (replace(search, seed=2), replace(search, model=Covisitation(damping=8.0, neighbors=1))):
        with pytest.raises(SettingsError, match="another name, or delete the folder"):
            run_trials(other, trials=4, **given)
    less = replace(search, data=search.data.where(np.arange(len(search.data)) > 0))
    with pytest.raises(SettingsError, match="its data was"):
        run_trials(less, trials=4, **given)


def test_a_trial_that_fails_is_told_and_the_others_go_on(ray_cluster: None, tmp_path: Path) -> None:
    search = replace(search_of(Odd(), space={"does": Choice(("raises", "dies", "counts"))}), seed=2)
    trials = run_trials(search, trials=4, folder=tmp_path, **BUDGET)
    assert {trial.settings["does"] for trial in trials} == {"fits", "raises", "dies", "counts"}
    for trial in trials:
        text = {"fits": "None", "raises": "no data for this one", "dies": "Actor", "counts": "2 threads"}
        assert text[trial.settings["does"]] in str(trial.failed)
        assert trial.whole == (trial.number == 0)


def test_what_the_caller_raises_ends_the_search_and_loses_no_trial(ray_cluster: None, tmp_path: Path) -> None:
    def full(trial: Trial, count: int) -> None:
        raise UnavailableError("the store is full")

    search = search_of(Ease())
    given: dict[str, Any] = BUDGET | {"trials": 1, "folder": tmp_path, "memory_mb": 1.0}
    with pytest.raises(UnavailableError, match="the store is full"):
        run_trials(search, **given, ended=full)
    trials = run_trials(search, **given)
    with pytest.raises(RecsysError, match=r"none of 1 trials .* trial 0: 1/9 of the users would take about"):
        search.best(trials)


def test_time_that_is_out_ends_what_runs(ray_cluster: None, tmp_path: Path) -> None:
    search = search_of(Odd(does="lasts"))
    assert run_trials(search, trials=1, folder=tmp_path, minutes=0.02, memory_mb=4000) == []
    with pytest.raises(RecsysError, match="give more minutes"):
        search.best([])


DRIVER = """
    import sys, time
    from pathlib import Path
    import ray
    from recsys.models.item_to_item.ease import Ease
    from recsys.models.held_out import validation_slice
    from recsys.training.search import Search
    from recsys.training.tuning import run_trials
    from tests.contracts.retrieval_model import log_of, pairs

    def ended(trial, count):
        print(trial.number, flush=True)
        time.sleep(0 if count < 3 else 60)

    ray.init(sys.argv[2], log_to_driver=False, logging_level="ERROR")
    search = Search(Ease(), Ease.space, *validation_slice(log_of(*pairs()), seed=0), 1)
    run_trials(search, trials=5, minutes=2, folder=Path(sys.argv[1]), memory_mb=350, ended=ended)
"""


def test_a_driver_that_is_killed_goes_on_with_its_finished_trials(ray_cluster: None, tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    script = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path), address]
    with subprocess.Popen(script, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        first = [int(driver.stdout.readline()) for _ in range(3)][:2]  # the third is not written down yet
        driver.send_signal(signal.SIGKILL)
    journal = tmp_path / "trials.jsonl"
    with journal.open("a") as file:
        file.write('{"number": 4, "sett')  # as a kill may leave it
    begun: list[int] = []
    before = journal.read_text().splitlines()[:-1]
    trials = run_trials(
        search_of(Ease()), trials=5, folder=tmp_path, ended=lambda t, n: begun.append(t.number), **BUDGET
    )
    assert [trial.number for trial in trials[:2]] == first
    assert sorted(first + begun) == [0, 1, 2, 3, 4]
    lines = journal.read_text().splitlines()
    assert lines[:3] == before
    assert sorted(json.loads(line)["number"] for line in lines[1:]) == [0, 1, 2, 3, 4]


def test_halving_knows_the_trials_of_earlier_starts_and_lets_the_first_pass() -> None:
    class Running:
        def __init__(self, number: int) -> None:
            self.trial_id, self.config = f"t{number}", {"number": number}

    def decides(number: int, value: float, mode: str = "max") -> str:
        earlier = [Trial(n, {}, [0.1 * n, 0.1 * n], 1.0) for n in range(1, 4)]
        halving, running = _Halving(earlier, mode=mode), Running(number)
        halving.on_trial_add(None, running)
        return halving.on_trial_result(None, running, {"ninths": 1, "value": value})

    assert decides(5, 0.05) == "STOP"
    assert decides(5, 0.5) == "CONTINUE"
    assert decides(5, 0.05, "min") == "CONTINUE"
    assert decides(0, 0.05) == "CONTINUE"


def test_shares_grow_and_are_asked_the_same() -> None:
    search = search_of(Ease())
    counts = []
    for ninths in (1, 3, 9):
        data, judged = search.share(ninths)
        among = np.flatnonzero(data.histories.counts)
        counts.append(len(among))
        np.testing.assert_array_equal(judged.target, search.held_out.target)
        known = judged.queries.user >= 0
        assert set(judged.queries.user[known]) <= set(among)
        assert set(search.held_out.queries.user[~known]).isdisjoint(among)
    assert counts == [7, 20, 59]
    assert len(data) == len(search.data)


def test_ratings_are_judged_by_their_error() -> None:
    search = search_of(Svd())
    assert (search.metric, search.mode) == ("rmse", "min")
    fitted = Svd().fit(search.data, seed=0)
    error = search.quality(fitted, search.held_out)
    found = fitted.predict(search.held_out.queries, search.held_out.target) - search.held_out.value
    assert error == pytest.approx(np.sqrt((found**2).mean()), rel=1e-5)
    trials = [Trial(n, {}, [1, 1, value], 1.0) for n, value in enumerate((0.9, 0.8, 1.0))]
    assert search.best(trials).number == 1
    unrated = replace(search.held_out, value=np.full(len(search.held_out), np.nan, np.float32))
    with pytest.raises(DataError, match="no event held out has a value"):
        search.quality(fitted, unrated)


@pytest.mark.parametrize(
    ("changes", "given", "error", "text"),
    [
        ({}, {"trials": 0}, SettingsError, "trials = 0"),
        ({}, {"minutes": 0}, SettingsError, "minutes = 0"),
        ({"space": {}}, {}, SettingsError, "no setting left to tune"),
        ({"empty": True}, {}, DataError, "give more data"),
    ],
)
def test_what_cannot_be_searched_is_told(
    tmp_path: Path, changes: Any, given: Any, error: Any, text: str
) -> None:
    search = search_of(Ease(), space=changes.get("space"))
    if "empty" in changes:
        search = replace(search, held_out=search.held_out.take(np.zeros(0, int)))
    with pytest.raises(error, match=text):
        run_trials(search, **{"trials": 2, "folder": tmp_path, **BUDGET, **given})


@pytest.mark.parametrize(("cpus", "most"), [(16, 9), (8, 5), (4, 3), (2, 2), (2, 1), (1, 1), (7, 7)])
def test_no_more_trials_run_at_once_than_share_the_memory(cpus, most):
    """9 of 16 CPUs had one thread each, and Ray ran 16 in the memory of 9."""
    at_once, threads = even_shares(cpus, most)
    assert 1 <= at_once <= most
    assert cpus // threads == at_once  # that is what Ray runs
