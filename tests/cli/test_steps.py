"""Steps of the demo: what is done stays done, what changed is redone with all that follows."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from recsys.cli.steps import Step, describe, run_steps
from recsys.errors import DataError


@dataclass
class Shop:
    """Three steps that note when they ran; each writes a result that the next one could read."""

    folder: Path
    ran: list[str] = field(default_factory=list)
    settings: dict[str, dict] = field(default_factory=lambda: {n: {} for n in ("read", "train", "serve")})
    fails: str = ""

    def __post_init__(self) -> None:
        for name in self.settings:
            place = self.folder / "code" / name
            place.mkdir(parents=True, exist_ok=True)
            (place / "algorithm.py").write_text(f"# {name}")
            (place / "notes.txt").write_text("no code")

    def step(self, name: str) -> Step:
        def run(progress):
            progress(0.5, "half")
            self.ran.append(name)
            (self.folder / f"{name}.out").write_text(str(self.settings[name]))
            if name == self.fails:
                raise ConnectionError("killed midway")
            return {"things": len(self.ran), "of": {"a": 1}}

        return Step(name, run, [str(self.folder / "code" / name)], self.settings[name])

    def run(self) -> list[str]:
        """Which steps ran this time."""
        self.ran.clear()
        console = Console(file=io.StringIO())
        done = run_steps([self.step(n) for n in self.settings], folder=self.folder, console=console)
        assert [n for n in done if not done[n]["cached"]] == self.ran
        return list(self.ran)


@pytest.fixture
def shop(tmp_path) -> Shop:
    return Shop(tmp_path)


def test_a_finished_step_is_not_redone(shop):
    assert shop.run() == ["read", "train", "serve"]
    assert shop.run() == []
    assert Shop(shop.folder).run() == []  # nor by another process


def test_the_figures_of_a_finished_step_are_kept(shop):
    first = run_steps([shop.step("read")], folder=shop.folder, console=Console(file=io.StringIO()))
    again = run_steps([shop.step("read")], folder=shop.folder, console=Console(file=io.StringIO()))
    assert first["read"]["figures"] == again["read"]["figures"] == {"things": 1, "of": {"a": 1}}
    assert (first["read"]["cached"], again["read"]["cached"]) == (False, True)


def test_a_changed_setting_redoes_the_step_and_what_follows(shop):
    shop.run()
    shop.settings["train"]["rounds"] = 3
    assert shop.run() == ["train", "serve"]
    assert shop.run() == []


def test_changed_code_redoes_the_step_and_what_follows(shop):
    shop.run()
    (shop.folder / "code" / "serve" / "notes.txt").write_text("still no code")
    assert shop.run() == []
    (shop.folder / "code" / "serve" / "algorithm.py").write_text("# better")
    assert shop.run() == ["serve"]
    (shop.folder / "code" / "train" / "new.yaml").write_text("a: 1")
    assert shop.run() == ["train", "serve"]


def test_a_changed_input_redoes_everything(shop):
    shop.run()
    shop.settings["read"]["path"] = "other.csv"
    assert shop.run() == ["read", "train", "serve"]


def test_a_step_whose_results_are_gone_is_redone(shop):
    shop.run()
    out = shop.folder / "train.out"
    out.unlink()
    step = shop.step("train")
    steps = [shop.step("read"), Step(step.name, step.run, step.code, step.settings, holds=out.exists)]
    done = run_steps(steps, folder=shop.folder, console=Console(file=io.StringIO()))
    assert [done[n]["cached"] for n in done] == [True, False]
    assert out.exists()


def test_a_step_that_raised_is_redone_and_those_before_it_are_not(shop):
    shop.fails = "train"
    with pytest.raises(ConnectionError):
        shop.run()
    shop.fails = ""
    assert shop.run() == ["train", "serve"]


def test_a_killed_step_does_not_leave_the_marker_of_an_earlier_run(shop):
    """Trained with 3 rounds; then with 9, killed midway; then with 3 again. The marker of the first run
    still stood and vouched for what the second one had half overwritten."""
    shop.settings["train"]["rounds"] = 3
    shop.run()
    shop.settings["train"]["rounds"] = 9
    shop.fails = "train"
    with pytest.raises(ConnectionError):
        shop.run()
    shop.settings["train"]["rounds"] = 3
    shop.fails = ""
    assert shop.run() == ["train"]
    assert (shop.folder / "train.out").read_text() == "{'rounds': 3}"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"key": 3}', "\x00"])
def test_a_corrupted_marker_is_redone(shop, content):
    shop.run()
    marker = shop.folder / "steps" / "train.json"
    marker.write_text(content)
    assert shop.run() == ["train"]
    assert shop.run() == []


def test_a_folder_that_can_not_be_written_is_named(shop):
    (shop.folder / "steps").write_text("in the way")
    with pytest.raises(DataError, match=r"steps/read\.json .*free some space"):
        shop.run()


def test_figures_in_one_line():
    assert describe({"users_seen": 12345, "of": {"a": 1, "b": "x"}, "days": [1, 2], "none": {}}) == (
        "users seen 12,345 · of a 1, b x · days 1 2 · none none"
    )
