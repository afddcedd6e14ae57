"""What every retrieval model must hold. A test class inherits it and names its `model`.

The world: users with a taste each, who take items of their taste's group nine times of ten.
"""

from dataclasses import replace

import numpy as np
import pytest

from recsys.datasets.problem import Judged, hold_out
from recsys.errors import DataError
from recsys.evaluation.full_ranking import measure, rank_all
from recsys.interactions import Interactions, Queries, Timing, Tokens, interactions_from_pairs
from recsys.models.item_to_item.table import ItemTable
from recsys.models.retrieval import RetrievalModel, Vectors
from recsys.types import DAY, Histories

USERS, ITEMS, GROUPS = 60, 40, 4
UNTAUGHT = ITEMS - 1  # an item that nobody takes
START = 1_300_000_000


def pairs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """User and item of each event; nobody takes item UNTAUGHT, user 0 has no event."""
    rng = np.random.default_rng(seed)
    user, item = [], []
    for u in range(1, USERS):
        weight = np.where(np.arange(ITEMS) % GROUPS == u % GROUPS, 9.0, 0.3)
        weight[UNTAUGHT] = 0
        taken = rng.choice(ITEMS, rng.integers(5, 10), replace=False, p=weight / weight.sum())
        user += [u] * len(taken)
        item += taken.tolist()
    return np.array(user), np.array(item)


def log_of(user: np.ndarray, item: np.ndarray, timing: Timing = Timing.NONE, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    time = START + np.sort(rng.integers(0, 90 * DAY, len(user))) if timing is Timing.CLOCK else None
    group = item % GROUPS == user % GROUPS
    value = np.where(group, 5.0, 2.0) + rng.integers(0, 2, len(user)) - 0.5
    log = interactions_from_pairs(user, item, users=USERS, items=ITEMS, time=time, value=value, timing=timing)
    tokens = Tokens(np.arange(ITEMS + 1, dtype=np.int32), (np.arange(ITEMS) % GROUPS).astype(np.int32))
    genders = Tokens(np.arange(USERS + 1, dtype=np.int32), (np.arange(USERS) % 2).astype(np.int32))
    return replace(log, item_tokens=tokens, user_tokens=genders)


def without_content(log: Interactions) -> Interactions:
    return replace(log, item_tokens=None, user_tokens=None)


def queries_of(log: Interactions, users: np.ndarray, *, strangers: bool = False) -> Queries:
    histories = log.histories.take(users)
    now = np.full(len(users), log.histories.time.max(initial=0) + 1)
    return Queries(np.full(len(users), -1) if strangers else users.astype(np.int64), histories, now)


def renamed_problem(
    log: Interactions, judged: Judged, users: np.ndarray, items: np.ndarray
) -> tuple[Interactions, Judged]:
    """The same with user u and item i as `users[u]` and `items[i]`; no weights, no content."""

    def named(histories: Histories) -> Histories:
        return replace(histories, item=items[histories.item].astype(np.int32))

    old = np.argsort(users)
    log = replace(log, user_ids=log.user_ids[old], histories=named(log.histories.take(old)))
    asked = judged.queries
    queries = Queries(users[asked.user], named(asked.histories), asked.now)
    target, masked = (items[rows].astype(np.int32) for rows in (judged.target, judged.masked))
    return log, replace(judged, queries=queries, target=target, masked=masked)


ALL = np.arange(USERS)


class RetrievalModelContract:
    model: RetrievalModel

    @pytest.fixture(params=list(Timing), ids=lambda timing: timing.value)
    def log(self, request) -> Interactions:
        return log_of(*pairs(), request.param)

    @pytest.fixture
    def fitted(self, log):
        return self.model.fit(log, seed=1)

    def test_scores_are_of_all_items_and_never_nan(self, log, fitted):
        scores = fitted.score(queries_of(log, ALL))
        assert scores.dtype == np.float32
        assert scores.shape == (USERS, ITEMS)
        assert not np.isnan(scores).any()
        assert not np.isposinf(scores).any()

    def test_scores_may_be_written_to(self, log, fitted):
        """The judge masks them in place: a broadcast or shared array would corrupt the next block."""
        queries = queries_of(log, ALL[:5])
        scores = fitted.score(queries)
        before = scores.copy()
        scores[:] = -np.inf
        np.testing.assert_allclose(fitted.score(queries), before, rtol=1e-5, atol=1e-5)

    def test_an_untaught_item_without_content_has_no_score(self, log):
        log = without_content(log)
        assert (self.model.fit(log, seed=1).score(queries_of(log, ALL))[:, UNTAUGHT] == -np.inf).all()

    def test_known_users_strangers_and_empty_histories_are_answered(self, log, fitted):
        taught = np.arange(ITEMS) != UNTAUGHT
        for strangers in (False, True):
            scores = fitted.score(queries_of(log, ALL, strangers=strangers))
            assert (np.isfinite(scores[:, taught]).any(1)).all()

    def test_a_history_of_an_untaught_item_is_answered(self, log, fitted):
        one = replace(log.histories.take(np.array([1])), offsets=np.array([0, 1], np.int32))
        history = Histories(one.offsets, *(getattr(one, c)[:1] for c in Histories.COLUMNS))
        history = replace(history, item=np.array([UNTAUGHT], np.int32))
        scores = fitted.score(Queries(np.array([-1]), history, np.array([START + 100 * DAY])))
        assert np.isfinite(scores).any()

    def test_no_score_depends_on_batch_mates(self, log, fitted):
        together = fitted.score(queries_of(log, ALL))
        for user in (0, 1, 17):
            alone = fitted.score(queries_of(log, np.array([user])))
            np.testing.assert_allclose(alone[0], together[user], rtol=1e-4, atol=1e-5)

    def test_the_same_seed_gives_the_same(self, log, fitted):
        again = self.model.fit(log, seed=1).arrays()
        for name, array in fitted.arrays().items():
            np.testing.assert_array_equal(array, again[name], err_msg=name)

    def test_arrays_are_all_that_is_needed(self, log, fitted):
        arrays = {name: np.asarray(array) for name, array in fitted.arrays().items()}
        assert all(array.dtype != object for array in arrays.values())
        restored = type(fitted).from_arrays(arrays)
        queries = queries_of(log, ALL)
        np.testing.assert_allclose(restored.score(queries), fitted.score(queries), rtol=1e-5, atol=1e-6)

    def test_the_export_ranks_as_the_model_does(self, log, fitted):
        queries = queries_of(log, ALL[1:])
        scores, export = fitted.score(queries), fitted.export()
        if isinstance(export, Vectors):
            assert export.items.dtype == np.float32
            users = export.encoder.encode(queries)
            assert users.dtype == np.float32
            found = users @ np.nan_to_num(export.items).T
            taught = ~np.isnan(export.items).any(1)
        else:
            assert isinstance(export, ItemTable)
            weights = np.ones(len(queries.histories.item), np.float32)
            found = export.score(queries.histories, weights=weights).toarray()
            taught = np.arange(ITEMS) != UNTAUGHT
        agree = [
            len(set(np.argsort(-a[taught])[:10]) & set(np.argsort(-b[taught])[:10]))
            for a, b in zip(scores, found)
        ]
        assert np.mean(agree) >= (9.5 if isinstance(export, Vectors) else 7)

    def test_it_learns_the_tastes(self):
        """Of the items that a user did not take yet, those of the user's group come first."""
        for timing in Timing:
            log = log_of(*pairs(), timing)
            scores = self.model.fit(log, seed=1).score(queries_of(log, ALL[1:]))
            request = log.histories.take(ALL[1:]).request
            scores[request, log.histories.take(ALL[1:]).item] = -np.inf
            best = scores.argmax(1)
            assert np.mean(best % GROUPS == ALL[1:] % GROUPS) > self.expected_taste, timing

    expected_taste = 0.8  # share of users whose best new item is of their group; chance is .25

    def test_events_of_weight_0_teach_nothing(self):
        user, item = pairs()
        log = without_content(log_of(user, item))
        noise = np.random.default_rng(3)
        more_user = np.concatenate((user, noise.integers(1, USERS, 300)))
        more_item = np.concatenate((item, noise.integers(0, ITEMS, 300)))
        order = np.argsort(more_user, kind="stable")
        weight = np.concatenate((np.ones(len(user)), np.zeros(300)))[order].astype(np.float32)
        noisy = replace(without_content(log_of(more_user, more_item)), weight=weight)
        queries = queries_of(log, ALL, strangers=True)
        clean, same = self.model.fit(log, seed=1).score(queries), self.model.fit(noisy, seed=1).score(queries)
        np.testing.assert_array_equal(same[:, UNTAUGHT], np.full(USERS, -np.inf, np.float32))
        top = [len(set(a) & set(b)) for a, b in zip(np.argsort(-clean)[:, :10], np.argsort(-same)[:, :10])]
        assert np.mean(top) > 7.5

    def test_duplicate_interactions_are_no_error(self):
        user, item = pairs()
        log = log_of(np.sort(np.concatenate((user, user))), np.repeat(item, 2))
        scores = self.model.fit(log, seed=1).score(queries_of(log, ALL))
        assert not np.isnan(scores).any()

    def test_one_interaction_in_all(self):
        log = log_of(np.array([3]), np.array([5]))
        try:
            fitted = self.model.fit(log, seed=1)
        except DataError:
            return
        scores = fitted.score(queries_of(log, ALL, strangers=True))
        assert not np.isnan(scores).any()
        assert np.isfinite(scores[:, 5]).all()

    def test_no_interaction_is_a_typed_error(self):
        with pytest.raises(DataError):
            self.model.fit(log_of(np.zeros(0, int), np.zeros(0, int)), seed=1)

    def test_nothing_but_events_of_weight_0_is_a_typed_error(self, log):
        with pytest.raises(DataError):
            self.model.fit(replace(log, weight=np.zeros(len(log), np.float32)), seed=1)

    def test_the_estimate_is_given_before_the_work(self, log):
        estimate = self.model.estimate(log)
        assert estimate.memory_mb > 0
        assert estimate.seconds >= 0
        assert np.isfinite([estimate.memory_mb, estimate.seconds]).all()

    def test_remapped_ids_change_no_metric_beyond_noise(self, log):
        """The same events are held out under all names."""
        newest = log.timing is not Timing.NONE
        rest, judged = hold_out(without_content(log), users=USERS, seed=5, newest=newest)
        as_named, renamed = [], []
        for seed in range(3):
            as_named.append(self.ndcg(rest, judged, seed=seed))
            names = np.random.default_rng(seed)
            other = renamed_problem(rest, judged, names.permutation(USERS), names.permutation(ITEMS))
            renamed.append(self.ndcg(*other, seed=seed))
        assert abs(np.mean(as_named) - np.mean(renamed)) < self.renaming_noise

    renaming_noise = 0.002  # of a model that draws nothing: items of equal scores, and rounding

    def ndcg(self, train: Interactions, judged: Judged, *, seed: int) -> float:
        ranked = rank_all(self.model.fit(train, seed=seed), judged, items=ITEMS, depth=10)
        return float(np.mean(measure(ranked, judged, metrics=("ndcg",), at=(10,))["ndcg@10"]))


class ExplicitModelContract(RetrievalModelContract):
    def test_values_are_predicted_within_their_range(self, log, fitted):
        queries = queries_of(log, ALL)
        for item in (0, 7, UNTAUGHT):
            predicted = fitted.predict(queries, np.full(USERS, item))
            assert predicted.shape == (USERS,)
            assert ((predicted >= 1.5) & (predicted <= 5.5)).all()

    def test_values_not_given_teach_nothing(self):
        user, item = pairs()
        log = log_of(user, item)
        gaps = log.histories.value.copy()
        gaps[::3] = np.nan
        some = replace(log, histories=replace(log.histories, value=gaps))
        queries = queries_of(log, ALL, strangers=True)
        predicted = self.model.fit(some, seed=1).predict(queries, np.full(USERS, 5))
        assert np.isfinite(predicted).all()

    def test_no_value_at_all_is_a_typed_error(self):
        log = log_of(*pairs())
        none = np.full(len(log), np.nan, np.float32)
        with pytest.raises(DataError, match=r"value|rating"):
            self.model.fit(replace(log, histories=replace(log.histories, value=none)), seed=1)
