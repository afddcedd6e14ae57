"""The index shard: exact where it says so, honest where it has nothing."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import ReleaseError
from recsys.hashing import shard_of_rows
from recsys.index.shard import IndexSettings, IndexShard, build_local_shards, build_shards
from recsys.pipeline.sources import nearest

D = 8


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def search(shards, queries, k):
    """The merged answer of all shards: (item rows, scores), ragged by request."""

    async def ask():
        return await asyncio.gather(*(shard(queries, k) for shard in shards))

    answers = asyncio.run(ask())
    rows, scores = (np.concatenate(columns, axis=1) for columns in zip(*answers, strict=True))
    return nearest(rows, scores, k=k, hidden=())


@settings(deadline=None, max_examples=25)
@given(
    items=st.integers(1, 80),
    shards=st.integers(1, 6),
    requests=st.integers(1, 30),
    k=st.integers(1, 100),
    seed=st.integers(0, 99),
)
def test_the_union_of_shards_is_exact_search(items, shards, requests, k, seed):
    vectors, queries = unit(items, seed), unit(requests, seed + 1)
    found = search(build_local_shards(vectors, settings=IndexSettings(shards=shards)), queries, k)
    k = min(k, items)
    assert np.diff(found.offsets).tolist() == [k] * requests
    exact = queries @ vectors.T
    rows, scores = found.item.reshape(requests, k), found.score.reshape(requests, k)
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :k], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, rows, axis=1), scores, atol=1e-5)


def test_every_item_is_in_the_shard_of_its_hash():
    vectors = unit(60)
    for number, shard in enumerate(build_local_shards(vectors, settings=IndexSettings(shards=3))):
        rows, _ = shard.shard.search(vectors, 60)
        assert set(rows[rows >= 0].tolist()) == set(np.flatnonzero(shard_of_rows(np.arange(60), 3) == number))


def test_more_than_the_shard_has():
    (content,) = build_shards(unit(5), settings=IndexSettings(shards=1))
    shard = IndexShard.from_bytes(content)
    rows, scores = shard.search(unit(2), 50)
    assert rows.shape == scores.shape == (2, 5)
    assert rows.dtype == np.int32
    assert scores.dtype == np.float32
    assert sorted(rows[0].tolist()) == [0, 1, 2, 3, 4]
    assert (np.diff(scores, axis=1) <= 0).all()


def test_an_empty_shard_has_nothing_and_says_so():
    contents = build_shards(unit(1), settings=IndexSettings(shards=4))
    sizes = [len(IndexShard.from_bytes(content)) for content in contents]
    assert sorted(sizes) == [0, 0, 0, 1]
    rows, scores = IndexShard.from_bytes(contents[sizes.index(0)]).search(unit(3), 10)
    assert rows.tolist() == [[-1]] * 3
    assert (scores == -np.inf).all()


def test_no_query():
    (content,) = build_shards(unit(5), settings=IndexSettings(shards=1))
    rows, _ = IndexShard.from_bytes(content).search(np.zeros((0, D), np.float32), 3)
    assert rows.shape == (0, 3)


def test_an_approximate_index_marks_what_it_did_not_find():
    """FAISS looks into one cell of the inverted file and returns -1 for what it did not find there."""
    (content,) = build_shards(unit(400), settings=IndexSettings(factory="IVF8,Flat", shards=1))
    rows, scores = IndexShard.from_bytes(content).search(unit(20, seed=5), 200)
    absent = rows < 0
    assert absent.any()
    assert (rows[absent] == -1).all()
    assert (scores[absent] == -np.inf).all()
    assert np.isfinite(scores[~absent]).all()


def test_queries_of_another_dimension_are_refused():
    (content,) = build_shards(unit(5), settings=IndexSettings(shards=1))
    with pytest.raises(ValueError, match="queries have 7 dimensions, the index 8"):
        IndexShard.from_bytes(content).search(np.zeros((1, 7), np.float32), 3)


def test_the_bytes_are_repeatable_and_load_from_a_file(tmp_path):
    first, second = (build_shards(unit(50), settings=IndexSettings()) for _ in range(2))
    assert first == second
    path = tmp_path / "0.faiss"
    path.write_bytes(first[0])
    left, right = IndexShard.load(path).search(unit(4), 9), IndexShard.from_bytes(first[0]).search(unit(4), 9)
    np.testing.assert_array_equal(left[0], right[0])


def test_a_file_that_is_no_index_is_refused_by_name(tmp_path):
    (content,) = build_shards(unit(50), settings=IndexSettings(shards=1))
    path = tmp_path / "0.faiss"
    for broken in (b"", content[:3], content[: len(content) // 2], content[:-1], b"not an index" * 50):
        path.write_bytes(broken)
        with pytest.raises(ReleaseError, match=r"0\.faiss is no FAISS index"):
            IndexShard.load(path)
    with pytest.raises(ReleaseError, match=r"gone\.faiss is no FAISS index"):
        IndexShard.load(tmp_path / "gone.faiss")
