"""The two-tower as a retrieval model: the contract, and what only it promises."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from recsys.errors import DataError, SettingsError
from recsys.interactions import Interactions, Timing, Tokens, interactions_from_pairs
from recsys.models.two_tower.fitted import FittedTwoTower
from recsys.settings import model_of
from recsys.training.loop import train
from recsys.training.two_tower_model import TwoTowerModel
from recsys.types import DAY
from tests.contracts.retrieval_model import (
    ALL,
    GROUPS,
    ITEMS,
    START,
    UNTAUGHT,
    USERS,
    RetrievalModelContract,
    log_of,
    pairs,
    queries_of,
    without_content,
)

SMALL = TwoTowerModel(
    dimensions=16,
    uniform=64,
    batch=32,
    passes=16,
    epochs=4,
    left_out=0.3,
    token_buckets=8,
    attribute_buckets=8,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def fitted_on(timing: Timing) -> FittedTwoTower:
    return SMALL.fit(log_of(*pairs(), timing), seed=1)


class TestTwoTower(RetrievalModelContract):
    model = SMALL
    renaming_noise = 0.08  # of three fits of chance examples: .02 to .05 was seen

    @pytest.fixture
    def fitted(self, log):
        return fitted_on(log.timing)


def large_log(timing: Timing = Timing.NONE) -> Interactions:
    """The same kind of users seven times: enough for a slice to validate on."""
    parts = [pairs(seed) for seed in range(7)]
    user = np.concatenate([user + USERS * number for number, (user, _) in enumerate(parts)])
    item = np.concatenate([item for _, item in parts])
    time = np.random.default_rng(0).integers(START, START + 90 * DAY, len(user))
    return interactions_from_pairs(user, item, users=7 * USERS, items=ITEMS, time=time, timing=timing)


def of_group(scores: np.ndarray, users: np.ndarray, item: int) -> tuple[float, float]:
    """Mean share of items that stand below `item` for users of its group, and for others."""
    below = (scores < scores[:, [item]]).mean(1)
    own = users % GROUPS == item % GROUPS
    return float(below[own].mean()), float(below[~own].mean())


@pytest.mark.parametrize("timing", list(Timing), ids=lambda timing: timing.value)
def test_an_item_that_nobody_took_is_shown_to_those_whom_its_content_suits(timing):
    log = log_of(*pairs(), timing)
    own, others = of_group(fitted_on(timing).score(queries_of(log, ALL[1:])), ALL[1:], UNTAUGHT)
    assert own > 0.7
    assert others < 0.5


def test_content_that_is_not_wanted_says_nothing():
    log = log_of(*pairs())
    scores = replace(SMALL, content=False).fit(log, seed=1).score(queries_of(log, ALL))
    assert (scores[:, UNTAUGHT] == -np.inf).all()


def test_popularity_that_is_left_to_the_scores_makes_popular_items_rank_higher():
    log = without_content(log_of(*pairs()))
    taken = np.bincount(log.histories.item, minlength=ITEMS)
    shown = []
    for popularity in (0.0, 1.0):
        scores = replace(SMALL, popularity=popularity).fit(log, seed=1).score(queries_of(log, ALL))
        shown.append(taken[np.argsort(-scores, axis=1)[:, :5]].mean())
    assert shown[1] > shown[0]


@pytest.mark.parametrize("timing", list(Timing), ids=lambda timing: timing.value)
def test_what_is_known_of_a_user_who_took_nothing_is_used(timing):
    user, item = pairs()
    some = user >= 12  # who is below has attributes, and nothing else
    log = log_of(user[some], item[some], timing)
    groups = Tokens(np.arange(USERS + 1, dtype=np.int32), (np.arange(USERS) % GROUPS).astype(np.int32))
    log = replace(log, user_tokens=groups)
    fitted = replace(SMALL, passes=1000, most_steps=150).fit(log, seed=1)
    scores = fitted.score(queries_of(log, ALL[:12]))
    top = np.argsort(-scores, axis=1)[:, :5]
    assert (top % GROUPS == (ALL[:12] % GROUPS)[:, None]).mean() > 0.7  # chance is .25


@pytest.mark.parametrize(
    "harm",
    [
        lambda log: log.where(np.zeros(len(log), bool)),
        lambda log: replace(log, weight=np.zeros(len(log), np.float32)),
    ],
    ids=["no event", "no weight"],
)
def test_nothing_to_learn_from_is_a_typed_error(harm):
    with pytest.raises(DataError, match="nothing to learn from"):
        SMALL.fit(harm(log_of(*pairs())), seed=1)


@pytest.mark.parametrize("timing", list(Timing), ids=lambda timing: timing.value)
def test_one_interaction_is_enough(timing):
    log = without_content(log_of(np.array([3]), np.array([5]), timing))
    scores = SMALL.fit(log, seed=1).score(queries_of(log, ALL))
    assert np.isfinite(scores[:, 5]).all()
    assert (np.delete(scores, 5, axis=1) == -np.inf).all()


def test_a_batch_without_a_target_has_no_loss():
    """Of orders of items taken before, most have no target by chance: a batch of few may have none at
    all. Its mean loss was 0 / 0, and so was what a checkpoint told of its epoch."""
    user = np.repeat(np.arange(1, 9), 20)
    log = without_content(log_of(user, user % 3, Timing.CLOCK))
    model, losses = replace(SMALL, batch=2, repeat_share=0.05, examples="next", passes=2), []
    task = model.task(log, seed=1)
    for _ in train(task, settings=task.loop, seed=1, progress=lambda share, loss: losses.append(loss)):
        pass
    assert 0 in losses
    assert np.isfinite(losses).all()


def test_it_stops_early_and_goes_back_to_the_best_epoch():
    log = large_log()
    model = replace(SMALL, epochs=12, passes=36, patience=2, learning_rate=0.1, last_rate=1.0)
    task = model.task(log, seed=1)
    values = [float(checkpoint["value"]) for checkpoint in train(task, settings=task.loop, seed=1)]
    assert len(values) < 12
    assert np.argmax(values) == len(values) - 3
    assert task.validate() == max(values)
    again = model.fit(log, seed=1).arrays()
    for name, array in model.finish(task).arrays().items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


FEW_STEPS = replace(SMALL, passes=1, epochs=1, spectral=False, learning_rate=0.001)


@pytest.mark.parametrize("timing", list(Timing), ids=lambda timing: timing.value)
def test_a_warm_start_goes_on_where_the_earlier_fit_ended(timing):
    log = log_of(*pairs(), timing)
    before = fitted_on(timing)
    warm = FEW_STEPS.fit(log, seed=2, start=before.arrays())
    cold = FEW_STEPS.fit(log, seed=2)
    queries = queries_of(log, ALL[1:])
    far = [np.abs(before.score(queries) - fitted.score(queries)).mean() for fitted in (warm, cold)]
    assert far[0] < far[1] / 3


def test_what_is_new_since_a_warm_start_begins_anew():
    """The last ten items and their events are news, as are item 5's and users from 40 on."""
    settings = {"user_buckets": 4096, "content": False}
    user, item = pairs()
    known = (item < ITEMS - 10) & (item != 5) & (user < 40)
    log = log_of(user, item)
    early = replace(log.where(known[np.argsort(user, kind="stable")]).below(ITEMS - 10))
    before = replace(SMALL, **settings).fit(early, seed=1)
    task = replace(SMALL, **settings).task(log, seed=2, start=before.arrays())
    old = before.users.encoder.history
    ids = task.module.id.weight.detach().numpy()
    taught = ~np.isnan(before.items).any(1)
    np.testing.assert_allclose(ids[: ITEMS - 10][taught], old[taught], atol=1e-6)
    assert not taught[5]
    assert ids[[5, *range(ITEMS - 10, ITEMS)]].std(axis=1).min() > 0.05
    bucket = task.batches.users.bucket
    ids_of_users = task.module.user_id.weight.detach().numpy()
    assert (ids_of_users[bucket[1:40]] != 0).any(1).all()
    assert (ids_of_users[np.setdiff1d(bucket[40:], bucket[:40])] == 0).all()
    scores = (
        replace(FEW_STEPS, **settings).fit(log, seed=2, start=before.arrays()).score(queries_of(log, ALL))
    )
    assert np.isfinite(scores[:, :UNTAUGHT]).all()


def test_a_start_that_does_not_fit_is_refused():
    log = log_of(*pairs())
    arrays = fitted_on(Timing.NONE).arrays()
    with pytest.raises(SettingsError, match=r"token is \(8, 16\) where this model's is \(8, 8\)"):
        replace(SMALL, dimensions=8).fit(log, seed=1, start=arrays)
    with pytest.raises(SettingsError, match="use the settings"):
        replace(SMALL, attention=True).fit(log, seed=1, start=arrays)
    with pytest.raises(SettingsError, match="no fit of a two-tower"):
        SMALL.fit(log, seed=1, start={"items": arrays["items"]})


@pytest.mark.parametrize("timing", list(Timing), ids=lambda timing: timing.value)
@pytest.mark.parametrize("model", [SMALL, TwoTowerModel(dimensions=8, max_history=4, most_events=200)])
def test_the_estimate_counts_the_steps_that_are_made(model, timing):
    """It counted users where examples are orders: 38 steps were told, and 3,140 made."""
    log = large_log(timing)
    task = model.task(log, seed=1)
    size, epochs, steps = model._schedule(*model._expected(log))
    assert epochs * steps == pytest.approx(task.epochs * task.steps, rel=0.3)
    assert size == pytest.approx(task.size, rel=0.3)


def test_lines_of_an_order_are_one_example():
    log = large_log(Timing.CLOCK)
    baskets = replace(log.histories, order=np.arange(len(log)) // 3)
    log, model = replace(log, histories=baskets), replace(SMALL, examples="next")
    found = (model.task(log, seed=1).batches.examples.chance > 0).sum()
    assert model._expected(log)[0] == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("epochs", "passes", "batch", "dimensions", "temperature", "patience")),
        *((name, -1) for name in ("uniform", "user_buckets", "weight_decay")),
        *((name, 1.5) for name in ("left_out", "id_dropout", "last_rate")),
        ("learning_rate", float("nan")),
        ("half_lives_events", (1.0, 0.0)),
    ],
)
def test_a_setting_that_cannot_be_names_itself(name, value):
    with pytest.raises(SettingsError, match=f"^{re.escape(f'{name} = {value!r}')}: must be .+$"):
        replace(SMALL, **{name: value})


def test_positives_need_negatives():
    with pytest.raises(SettingsError, match="need negatives"):
        replace(SMALL, uniform=0)


def test_a_refused_setting_of_a_command_is_one_line():
    """`--set epochs=0` was a ZeroDivisionError."""
    with pytest.raises(SettingsError, match=r"^two_tower: epochs = 0: must be above 0$"):
        model_of("two_tower", overrides=["epochs=0"])
