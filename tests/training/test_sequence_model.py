"""SASRec and GRU4Rec as retrieval models: the contract, and what only they promise."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from recsys.errors import SettingsError
from recsys.interactions import Asked, Interactions, Queries, Timing, interactions_from_pairs
from recsys.models.sequence.encoder import SequenceEncoder
from recsys.training.loop import train
from recsys.training.sequence_model import Gru4Rec, SasRec, SequenceModel, alike, pieces, within_order
from recsys.types import Histories, offsets_of
from tests.contracts.retrieval_model import RetrievalModelContract, log_of, pairs

SETTINGS = {"dimensions": 16, "window": 8, "token_buckets": 8, "batch": 64, "passes": 25, "warm_up": 10}
SAS = SasRec(learning_rate=0.01, dropout=0.1, event_dropout=0.1, **SETTINGS)  # type: ignore[arg-type]
GRU = Gru4Rec(learning_rate=0.02, dropout=0.1, event_dropout=0.1, **SETTINGS)  # type: ignore[arg-type]
MODELS = pytest.mark.parametrize("model", [SAS, GRU], ids=["sasrec", "gru4rec"])

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def fitted_on(model: SequenceModel, timing: Timing) -> SequenceEncoder:
    return model.fit(log_of(*pairs(), timing), seed=1)


class SequenceModelContract(RetrievalModelContract):
    model: SequenceModel
    renaming_noise = 0.1  # of three fits of chance batches

    @pytest.fixture
    def fitted(self, log):
        return fitted_on(self.model, log.timing)


class TestSasRec(SequenceModelContract):
    model = SAS


class TestGru4Rec(SequenceModelContract):
    model = GRU


def circles(users: int = 60, items: int = 12, length: int = 6) -> Interactions:
    """Everybody goes on from item i to i + 1, from somewhere: only the order tells what comes next."""
    start = np.random.default_rng(0).integers(0, items, users)
    item = (start[:, None] + np.arange(length)) % items
    user = np.repeat(np.arange(users), length)
    return interactions_from_pairs(user, item.ravel(), users=users, items=items, timing=Timing.SEQUENCE)


@MODELS
@pytest.mark.parametrize("full_softmax", [100, 0], ids=["full", "sampled"])
def test_it_learns_the_order_of_things(model, full_softmax):
    log = circles()
    fitted = replace(model, full_softmax=full_softmax, popular=16, uniform=6).fit(log, seed=0)
    one = log.histories.take(np.arange(12))
    scores = fitted.score(Queries(np.full(12, -1), one, np.zeros(12, np.int64)))
    last = one.item[one.offsets[1:] - 1]
    assert (scores.argmax(1) == (last + 1) % 12).mean() > 0.8


def scores_after(fitted: SequenceEncoder, lists: list[list[int]]) -> np.ndarray:
    counts = np.array([len(one) for one in lists])
    item = np.array([i for one in lists for i in one], np.int32)
    columns = (item, np.arange(len(item)), *(np.ones(len(item), np.float32),) * 2, np.arange(len(item)))
    histories = Histories(offsets_of(counts), *columns)
    return fitted.score(Queries(np.full(len(lists), -1), histories, np.zeros(len(lists), np.int64)))


@MODELS
def test_sessions_of_one_item_teach_what_is_taken_first(model):
    """There is nothing before it but the start token."""
    item = np.repeat([3, 1, 2], [30, 10, 2])
    log = interactions_from_pairs(
        np.arange(len(item)), item, users=len(item), items=5, timing=Timing.SEQUENCE
    )
    scores = scores_after(model.fit(log, seed=0), [[]])
    assert np.argsort(-scores[0])[:3].tolist() == [3, 1, 2]
    assert (scores[0, [0, 4]] == -np.inf).all()


@MODELS
def test_an_item_again_and_again_is_learned_as_such(model):
    user = np.repeat(np.arange(40), 5)
    item = np.repeat(np.arange(40) % 8, 5)
    fitted = model.fit(interactions_from_pairs(user, item, users=40, items=8, timing=Timing.SEQUENCE), seed=0)
    assert (scores_after(fitted, [[i] for i in range(8)]).argmax(1) == np.arange(8)).mean() > 0.8


@MODELS
def test_sequences_beyond_the_window_are_cut_and_all_of_them_is_learned(model):
    """Only the newest events of a long history were seen, and the others never taught."""
    long = circles(users=6, items=12, length=60)
    assert SETTINGS["window"] < 60
    fitted = replace(model, passes=40).fit(long, seed=0)
    asked = [[*range(i, i + 30)] for i in range(12)]
    scores = scores_after(fitted, [[e % 12 for e in one] for one in asked])
    assert (scores.argmax(1) == (np.arange(12) + 30) % 12).mean() > 0.8


@MODELS
def test_items_that_nothing_taught_are_as_if_they_were_not_there(model):
    log = replace(circles(), items=14)
    fitted = model.fit(log, seed=0)
    scores = scores_after(fitted, [[4, 5], [4, 13, 5, 12], [12], []])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores[2], scores[3], rtol=1e-4, atol=1e-5)
    assert (scores[:, 12:] == -np.inf).all()


def test_pieces_hold_each_event_once_and_none_is_longer_than_the_window():
    log = circles(users=5, items=12, length=23)
    weighed = replace(log, weight=np.arange(1, len(log) + 1, dtype=np.float32))
    seen = set()
    for seed in range(20):
        histories, weight = pieces(weighed, window=6, rng=np.random.default_rng(seed))
        assert histories.counts.max() <= 6
        assert histories.counts.sum() == len(log)
        np.testing.assert_array_equal(histories.item, log.histories.item)
        np.testing.assert_array_equal(weight, weighed.weight)
        assert np.isin(log.histories.offsets, histories.offsets).all()  # no piece holds events of two
        seen.add(tuple(histories.offsets))
    assert len(seen) > 1  # cut elsewhere in each pass


def test_a_history_without_an_order_is_shuffled_with_its_weights():
    log = log_of(*pairs(), Timing.NONE)
    weighed = replace(log, weight=(1 + log.histories.item).astype(np.float32))
    histories, weight = pieces(weighed, window=50, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(weight, 1 + histories.item)
    assert (histories.item != log.histories.item).any()
    for user in range(len(log.histories)):
        own = slice(log.histories.offsets[user], log.histories.offsets[user + 1])
        assert sorted(histories.item[own]) == sorted(log.histories.item[own])


def test_batches_hold_each_history_once_in_bounds_and_those_of_like_length():
    counts = np.random.default_rng(0).integers(1, 50, 400)
    batches = alike(counts, size=200, rng=np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == list(range(400))
    assert max(counts[b].sum() for b in batches) <= 200 + 50
    assert np.mean([np.ptp(counts[b]) for b in batches]) < 6
    assert len(alike(np.array([500, 1]), size=100, rng=np.random.default_rng(0))) == 2


@MODELS
def test_an_interrupted_training_ends_as_one_that_was_not(model):
    log, model = log_of(*pairs(), Timing.SEQUENCE), replace(model, passes=4)
    task = model.task(log, seed=3)
    checkpoints = list(train(task, settings=task.loop, seed=3))
    again = model.task(log, seed=3, blank=True)
    for _ in train(again, settings=again.loop, seed=3, start=checkpoints[1]):
        pass
    theirs = model.finish(task).arrays()
    for name, array in model.finish(again).arrays().items():
        np.testing.assert_allclose(array, theirs[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "wrong",
    [{"heads": 3}, {"window": 0}, {"dropout": 1.5}, {"popular": 0, "uniform": 0}, {"temperature": -1}],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(SettingsError):
        replace(SAS, **wrong)


def test_what_a_history_holds_is_no_more_often_a_negative_than_is_told():
    """Targets of the same batch were negatives: the rest of a session was there for certain, and told as
    rare, so that what goes together was pushed apart."""
    user = np.repeat(np.arange(300), 2)
    log = interactions_from_pairs(user, np.arange(600), users=300, items=600, timing=Timing.SEQUENCE)
    model = replace(SAS, full_softmax=0, popular=60, uniform=60, batch=20)
    task = model.task(log, seed=0)
    rng = np.random.default_rng(0)
    steps, found, told = task.begin(0, rng), [], []
    for step in range(steps):
        batch = {name: t.numpy() for name, t in task.batch(step, rng, rank=0, ranks=1).items()}
        found.append((batch["own"] >= 0).mean())
        told.append(np.exp(batch["log_expected"]).mean())
    assert abs(np.mean(found) - np.mean(told)) < 0.04  # .18 is told


@MODELS
def test_a_rank_without_a_share_of_a_batch_takes_part_and_changes_nothing(model):
    log = circles(users=3, length=30)
    task = replace(model, window=30, batch=1).task(log, seed=0)
    rng = np.random.default_rng(0)
    task.begin(0, rng)
    loss = task.module(**task.batch(0, rng, rank=1, ranks=2))
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in task.module.parameters())


def test_what_is_ordered_together_is_asked_for_together():
    """The lines of an order say nothing of each other: they are not there when it is predicted."""
    log = circles(users=2, items=12, length=6)
    order = np.array([0, 0, 1, 2, 2, 2, 1, 1, 1, 1, 3, 3])
    log = replace(log, histories=replace(log.histories, order=order))
    np.testing.assert_array_equal(within_order(log.histories), [0, 1, 0, 0, 1, 2, 0, 1, 2, 3, 0, 1])
    task = replace(SAS, batch=100).task(log, seed=0)
    rng = np.random.default_rng(0)
    task.begin(0, rng)
    batch = task.batch(0, rng, rank=0, ranks=1)
    place = batch["place"].numpy().reshape(2, 6) - 6 * np.arange(2)[:, None]
    assert sorted(place.tolist()) == [[0, 0, 0, 0, 4, 4], [0, 0, 2, 3, 3, 3]]


def test_all_that_is_read_when_serving_is_read_in_training():
    """The last event of the window was not: its distance kept the bias that it began with, and a window of
    one event trained on none."""
    log = circles(users=3, length=30)
    for window in (1, 6):
        task = replace(SAS, window=window).task(log, seed=0)
        rng = np.random.default_rng(0)
        task.begin(0, rng)
        event = task.batch(0, rng, rank=0, ranks=1)["event"]
        assert event.shape[1] == 1 + window
    fitted = replace(SAS, window=6, passes=2).fit(log, seed=0)
    assert (fitted.bias[:, :, :6] != 0).all()


def test_heads_are_of_attention_and_refused_when_they_are_given():
    assert replace(GRU, dimensions=25).dimensions == 25
    with pytest.raises(SettingsError, match=r"dimensions = 64, which the log chooses: .* heads = 3"):
        SasRec(heads=3)


def test_a_small_log_is_learned():
    """200 steps of warm-up were more than all steps of the training: MRR .04 of what follows for certain."""
    user = np.repeat(np.arange(300), 5)
    item = (np.tile(np.arange(5), 300) + np.repeat(np.arange(300) * 7, 5)) % 100
    log = interactions_from_pairs(user, item, users=300, items=100, timing=Timing.SEQUENCE)
    fitted = SasRec(passes=20).fit(replace(log, asked=Asked.SESSION), seed=0)
    asked = log.histories.where(np.tile([True, False, False, False, False], 300))
    scores = fitted.score(Queries(np.full(300, -1), asked, np.zeros(300, np.int64)))
    assert (scores.argmax(1) == (asked.item + 1) % 100).mean() > 0.95
