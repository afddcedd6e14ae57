"""What every type of index shard must do; a type inherits this suite with its factory string.

Indexes that are approximate are searched as thoroughly as they can be, so that what they find can be
compared with looking at everything.
"""

import threading

import numpy as np
import pytest

from recsys.index.build import build_shard
from recsys.index.factory import shard_type
from recsys.index.shard import Filter, IndexShard
from recsys.index.vectors import VectorArray

D, ITEMS = 16, 600


def vectors_of(items: int = ITEMS, *, seed: int = 0) -> np.ndarray:
    """Of unlike lengths, as factors are; float32 [items, D]."""
    random = np.random.default_rng(seed)
    return (random.normal(size=(items, D)) * random.gamma(3.0, size=(items, 1))).astype(np.float32)


class IndexContract:
    factory: str
    precision = 1e-5  # of a score, relative to the largest
    recall = 1.0  # of the 20 nearest when it is searched as thoroughly as it can be

    def shard(self, vectors: np.ndarray) -> IndexShard:
        kind = shard_type(self.factory, items=len(vectors), dimensions=D)
        built = build_shard(VectorArray(vectors), kind, query_length=float(np.sqrt(D)), seed=1)
        thorough = {"nprobe": 10**6, "k_factor": 4, "efSearch": 10**4}
        return self.opened(IndexShard(built.index, built.rows, setting=thorough))

    def opened(self, shard: IndexShard) -> IndexShard:
        return shard

    def agrees(self, shard: IndexShard, vectors: np.ndarray, alive: np.ndarray, k: int = 20, **only) -> None:
        """`shard` finds of `vectors` [by item row] the nearest that are `alive`."""
        queries = np.random.default_rng(9).normal(size=(12, D)).astype(np.float32)
        rows, scores = shard.search(queries, k, **only)
        exact = np.where(alive, queries @ vectors.T, -np.inf)
        best = np.argsort(-exact, axis=1)[:, :k]
        wanted = min(k, int(alive.sum()))
        assert ((rows >= 0).sum(1) == wanted).all()
        assert alive[rows[rows >= 0]].all()
        found = sum(np.isin(best[q, :wanted], rows[q]).sum() for q in range(len(queries)))
        assert found >= self.recall * wanted * len(queries)
        has = rows >= 0
        query, _ = np.nonzero(has)
        np.testing.assert_allclose(
            scores[has], exact[query, rows[has]], atol=self.precision * np.abs(queries @ vectors.T).max()
        )
        assert all(len(set(line[line >= 0])) == (line >= 0).sum() for line in rows)

    def test_it_finds_what_looking_at_everything_finds(self):
        vectors = vectors_of()
        self.agrees(self.shard(vectors), vectors, np.ones(ITEMS, bool))

    def test_one_query_and_a_batch_give_the_same(self):
        shard, queries = self.shard(vectors_of()), vectors_of(5, seed=3)
        rows, scores = shard.search(queries, 10)
        for q in range(5):
            row, score = shard.search(queries[q : q + 1], 10)
            np.testing.assert_array_equal(row[0], rows[q])
            np.testing.assert_allclose(score[0], scores[q], rtol=1e-5)

    def test_more_than_there_are(self):
        shard = self.shard(vectors_of(40))
        rows, scores = shard.search(vectors_of(3, seed=2), 100)
        assert rows.shape == scores.shape == (3, 40)
        assert (rows.dtype, scores.dtype) == (np.int32, np.float32)
        assert sorted(rows[0].tolist()) == list(range(40))
        assert (np.diff(scores, axis=1) <= 0).all()

    def test_missing_neighbors_are_minus_one_and_come_last(self):
        shard = self.shard(vectors_of(40))
        shard.delete(np.arange(5, 40))
        shard.upsert({100: vectors_of(1)[0]})
        rows, scores = shard.search(vectors_of(3, seed=2), 100, only=Filter(np.arange(200) != 0))
        assert rows.shape == (3, 6)
        assert sorted(rows[0].tolist()) == [-1, 1, 2, 3, 4, 100]
        assert (rows[:, -1] == -1).all()
        assert (scores[:, -1] == -np.inf).all()
        assert np.isfinite(scores[:, :-1]).all()

    def test_no_query(self):
        rows, scores = self.shard(vectors_of(40)).search(np.zeros((0, D), np.float32), 3)
        assert rows.shape == scores.shape == (0, 3)

    def test_equal_vectors_are_all_found(self):
        vectors = vectors_of()
        vectors[100:110] = 50 * vectors[100] / np.linalg.norm(vectors[100])
        rows, scores = self.shard(vectors).search(vectors[100:101], 10)
        assert sorted(rows[0].tolist()) == list(range(100, 110))
        np.testing.assert_allclose(scores[0], scores[0, 0], rtol=1e-5)

    def test_items_without_a_vector_are_not_there(self):
        """A score of 0 would beat every item that scores below."""
        vectors = vectors_of()
        vectors[::3] = 0
        vectors[1::3] = np.nan
        shard = self.shard(vectors)
        assert len(shard) == ITEMS // 3
        rows, _ = shard.search(vectors_of(4, seed=5), ITEMS)
        assert (rows % 3 == 2).all()

    def test_nothing_but_tombstones(self):
        shard = self.shard(vectors_of())
        shard.delete(np.arange(ITEMS))
        assert (len(shard), shard.tombstones) == (0, ITEMS)
        rows, scores = shard.search(vectors_of(3, seed=4), 10)
        assert rows.tolist() == [[-1]] * 3
        assert (scores == -np.inf).all()

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    def test_deleted_items_are_passed_over_until_k_are_found(self, share):
        vectors, random = vectors_of(), np.random.default_rng(1)
        shard, alive = self.shard(vectors), np.ones(ITEMS, bool)
        alive[random.permutation(ITEMS)[: int(share * ITEMS)]] = False
        shard.delete(np.append(np.flatnonzero(~alive), [ITEMS + 7]))  # one that nobody knows
        assert len(shard) == alive.sum()
        self.agrees(shard, vectors, alive)

    @pytest.mark.parametrize("share", [0.005, 0.1, 0.9])
    def test_only_what_a_filter_allows(self, share):
        vectors, shard = vectors_of(), self.shard(vectors_of())
        allowed = np.random.default_rng(2).random(ITEMS) < share
        self.agrees(shard, vectors, allowed, only=Filter(allowed))
        self.agrees(shard, vectors, np.zeros(ITEMS, bool), only=Filter(np.zeros(ITEMS, bool)))
        shorter = Filter(allowed[:100])  # what a filter does not know it does not allow
        self.agrees(shard, vectors, allowed & (np.arange(ITEMS) < 100), only=shorter)

    def test_upserts_replace_and_add_and_a_filter_counts_for_them(self):
        vectors = np.concatenate([vectors_of(), vectors_of(80, seed=7)])
        shard, alive = self.shard(vectors[:ITEMS]), np.ones(len(vectors), bool)
        changed = vectors_of(50, seed=8)
        vectors[20:70] = changed
        shard.upsert(dict(zip(range(20, 70), changed)))
        shard.upsert({row: vectors[row] for row in range(ITEMS, len(vectors))})
        assert (len(shard), shard.tombstones, len(shard.fresh)) == (len(vectors), 50, 130)
        self.agrees(shard, vectors, alive)
        allowed = np.random.default_rng(3).random(len(vectors)) < 0.3
        self.agrees(shard, vectors, allowed, only=Filter(allowed))

    def test_deleted_and_added_again(self):
        vectors, shard = vectors_of(), self.shard(vectors_of())
        alive = np.ones(ITEMS, bool)
        for row in (3, 4, 3):
            shard.delete(np.array([row]))
            alive[row] = False
            self.agrees(shard, vectors, alive)
            shard.upsert({row: vectors[row]})
            alive[row] = True
            self.agrees(shard, vectors, alive)
        assert (shard.tombstones, len(shard.fresh)) == (2, 2)

    def test_what_was_deleted_comes_back_with_the_vector_that_it_had(self):
        vectors, shard = vectors_of(), self.shard(vectors_of())
        only, alive = Filter(np.arange(ITEMS) % 5 == 0), np.ones(ITEMS, bool)
        vectors[5:7] = vectors_of(2, seed=6)
        shard.upsert({5: vectors[5], 6: vectors[6]})
        self.agrees(shard, vectors, only.allowed, only=only)  # it is at hand from here on
        shard.delete(np.arange(4, 12))
        alive[4:12] = False
        self.agrees(shard, vectors, alive)
        self.agrees(shard, vectors, alive & only.allowed, only=only)
        shard.restore(np.array([4, 5, 10, 11, 3, ITEMS + 1]))
        alive[[4, 5, 10, 11]] = True
        assert (len(shard), shard.tombstones) == (ITEMS - 4, 5)
        self.agrees(shard, vectors, alive)
        self.agrees(shard, vectors, alive & only.allowed, only=only)

    @pytest.mark.parametrize(
        "wrong", [np.zeros(D - 1), np.full(D, np.nan), np.full(D, np.inf), np.ones((1, D)), np.zeros(D)]
    )
    def test_a_vector_that_is_none_is_refused_and_changes_nothing(self, wrong):
        vectors, shard = vectors_of(), self.shard(vectors_of())
        with pytest.raises(ValueError, match="the vector of item row 7 is not 16 finite numbers"):
            shard.upsert({6: vectors[6], 7: wrong})
        assert (shard.tombstones, len(shard.fresh)) == (0, 0)

    @pytest.mark.parametrize("shape", [(1, D - 1), (D,), (2, 0)])
    def test_queries_of_another_dimension_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"queries have \d+ dimensions, the index 16"):
            self.shard(vectors_of(40)).search(np.zeros(shape, np.float32), 3)

    def test_threads_search_while_others_change_it(self):
        vectors, shard = vectors_of(), self.shard(vectors_of())
        allowed = Filter(np.arange(ITEMS) % 2 == 0)
        done, wrong = threading.Event(), []

        def search() -> None:
            while not done.is_set():
                rows, _ = shard.search(vectors[:4], 20, only=allowed)
                if (rows % 2).any() or (rows < 0).any():
                    wrong.append(rows)

        threads = [threading.Thread(target=search) for _ in range(2)]
        for thread in threads:
            thread.start()
        for row in range(200):
            shard.delete(np.array([row]))
            shard.upsert({row: vectors[row]})
        done.set()
        for thread in threads:
            thread.join()
        assert not wrong
        self.agrees(shard, vectors, np.ones(ITEMS, bool))
