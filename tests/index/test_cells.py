"""Cells for vectors of unlike lengths: fewer need to be visited than FAISS's own."""

import faiss
import numpy as np
import pytest

from recsys.index.build import build_shard
from recsys.index.cells import Cells, sample_by_length
from recsys.index.factory import ShardType
from recsys.index.vectors import VectorArray

D, CELLS = 16, 32


def unlike(items: int = 8000, *, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    directions = random.normal(size=(items, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return (directions * random.lognormal(sigma=0.5, size=(items, 1))).astype(np.float32)


def visited(index: faiss.IndexIVF, queries: np.ndarray, nearest: np.ndarray, recall: float) -> float:
    """Vectors that are looked at on average, with the fewest probes that find `recall` of the nearest."""
    sizes = np.array([index.invlists.list_size(cell) for cell in range(index.nlist)])
    for probes in range(1, index.nlist + 1):
        index.nprobe = probes
        found = index.search(queries, nearest.shape[1])[1]
        if np.mean([np.isin(a, b).mean() for a, b in zip(nearest, found)]) >= recall:
            return float(sizes[index.quantizer.search(queries, probes)[1]].sum(1).mean())
    raise AssertionError("never")


def visited_by_both(vectors: np.ndarray, queries: np.ndarray) -> tuple[float, float]:
    """(with our cells, with FAISS's own) for a recall of .98."""
    nearest = np.argsort(-(queries @ vectors.T), axis=1)[:, :50]
    theirs = faiss.index_factory(D, f"IVF{CELLS},Flat", faiss.METRIC_INNER_PRODUCT)
    theirs.train(vectors)
    theirs.add(vectors)
    ours = build_shard(VectorArray(vectors), ShardType(CELLS, "Flat")).index
    return visited(ours, queries, nearest, 0.98), visited(theirs, queries, nearest, 0.98)


def test_long_vectors_are_found_among_fewer():
    vectors, queries = unlike(), unlike(200, seed=1)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    ours, theirs = visited_by_both(vectors, queries)
    assert ours < 0.5 * theirs


def test_vectors_of_one_length_lose_nothing():
    vectors, queries = unlike(seed=3), unlike(200, seed=4)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ours, theirs = visited_by_both(vectors, queries)
    assert ours < 1.1 * theirs


@pytest.mark.parametrize("scalar", ["Flat", "SQfp16"])
def test_the_bonus_of_a_cell_is_in_no_score(scalar):
    vectors, queries = unlike(), unlike(20, seed=1)
    index = build_shard(VectorArray(vectors), ShardType(CELLS, scalar), query_length=5.0).index
    index.nprobe = 4
    scores, positions = index.search(queries, 10)
    exact = np.einsum("qd,qkd->qk", queries, vectors[positions])
    np.testing.assert_allclose(scores, exact, atol=2e-3 * np.abs(exact).max())


def test_the_bonus_is_the_deviation_within_the_cell():
    """Of one cell, it is that of all: how far scores of unit queries spread about the centroid's."""
    vectors = unlike()
    cells = Cells(vectors, count=1, seed=0)
    cells.assign(vectors[:3000])
    cells.assign(vectors[3000:])
    away = vectors - cells.centroids[0]
    expected = 3 * np.sqrt((away.astype(np.float64) ** 2).sum(1).mean() / D) * 2.0
    np.testing.assert_allclose(cells.bonus(2.0), [expected], rtol=1e-5)


def test_a_cell_that_nothing_was_assigned_to_has_no_bonus():
    cells = Cells(unlike(), count=8, seed=0)
    assert cells.bonus(1.0).tolist() == [0.0] * 8


def test_long_vectors_are_drawn_more_often():
    vectors = np.repeat([[1.0], [4.0]], 5000, axis=0).astype(np.float32)
    drawn = sample_by_length(VectorArray(vectors).blocks(), count=100, seed=0)
    assert len(drawn) == 100
    assert 70 <= (drawn == 4).sum() <= 90


def test_a_sample_of_more_than_there_are_is_all():
    vectors = unlike(50)
    np.testing.assert_array_equal(sample_by_length(VectorArray(vectors).blocks(), count=99, seed=0), vectors)
    assert len(sample_by_length(iter(()), count=9, seed=0)) == 0
