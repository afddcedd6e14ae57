"""Shards together are exact search; files that are none are refused."""

import asyncio
import multiprocessing
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import ReleaseError
from recsys.hashing import shard_of_rows
from recsys.index.build import build_shard
from recsys.index.building import build_index
from recsys.index.factory import ShardType
from recsys.index.settings import IndexSettings
from recsys.index.shard import FILTERS, Filter, IndexShard, exact_shard, open_shard, shards_in
from recsys.index.vectors import VectorArray
from recsys.pipeline.sources import nearest
from tests.contracts.index import vectors_of


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
    vectors, queries = vectors_of(items, seed=seed), vectors_of(requests, seed=seed + 1)
    found = search([exact_shard(vectors, n, shards) for n in range(shards)], queries, k)
    k = min(k, items)
    assert np.diff(found.offsets).tolist() == [k] * requests
    exact = queries @ vectors.T
    rows, scores = found.item.reshape(requests, k), found.score.reshape(requests, k)
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :k], atol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(exact, rows, axis=1), scores, atol=1e-3)


def test_every_item_is_in_the_shard_of_its_hash():
    vectors = vectors_of(60)
    for number in range(3):
        rows, _ = exact_shard(vectors, number, 3).shard.search(vectors, 60)
        assert set(rows[rows >= 0].tolist()) == set(np.flatnonzero(shard_of_rows(np.arange(60), 3) == number))


def test_an_empty_shard_has_nothing_and_takes_what_comes():
    vectors = vectors_of(1)
    shards = [exact_shard(vectors, number, 4).shard for number in range(4)]
    assert sorted(len(shard) for shard in shards) == [0, 0, 0, 1]
    empty = min(shards, key=len)
    rows, scores = empty.search(vectors_of(3, seed=1), 10)
    assert rows.tolist() == [[-1]] * 3
    assert (scores == -np.inf).all()
    empty.upsert({9: vectors[0]})
    assert empty.search(vectors_of(3, seed=1), 10)[0].tolist() == [[9]] * 3
    empty.delete(np.array([9, 0]))
    assert empty.search(vectors_of(3, seed=1), 10)[0].tolist() == [[-1]] * 3


def test_an_approximate_index_looks_further_until_it_has_k():
    """One cell of eight holds some 50 items; FAISS gives -1 for the others of 200."""
    made = build_shard(VectorArray(vectors_of(400)), ShardType(8, "Flat"))
    shard = IndexShard(made.index, made.rows, setting={"nprobe": 1})
    rows, scores = shard.search(vectors_of(20, seed=5), 200)
    assert (rows >= 0).all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_a_setting_counts_for_filters_that_are_at_hand():
    """A filter kept the setting of its first use, so a shard that was turned searched as before."""
    vectors, only = vectors_of(2000), Filter(np.arange(2000) % 2 == 0)
    made = build_shard(VectorArray(vectors), ShardType(32, "Flat"))
    shard, queries = IndexShard(made.index, made.rows, setting={"nprobe": 1}), vectors_of(50, seed=5)
    nearest = np.argsort(-np.where(only.allowed, queries @ vectors.T, -np.inf), axis=1)[:, :10]
    found = {}
    for probes in (1, 32):
        shard.turn({"nprobe": probes})
        rows, _ = shard.search(queries, 10, only=only)
        found[probes] = np.mean([np.isin(a, b).mean() for a, b in zip(nearest, rows)])
    assert found[1] < 0.9
    assert found[32] == 1


def test_a_shard_keeps_its_form_of_the_filters_it_saw_last():
    shard = exact_shard(vectors_of(100)).shard
    filters = [Filter(np.arange(100) == row) for row in range(100)]
    for row, only in enumerate(filters):
        assert shard.search(vectors_of(1), 5, only=only)[0].tolist() == [[row, -1, -1, -1, -1]]
    assert len(shard._filters) == FILTERS
    shard.delete(np.array([0, 99]))
    for row in (0, 99):  # the one is made anew, the other was at hand
        assert shard.search(vectors_of(1), 5, only=filters[row])[0].tolist() == [[-1] * 5]


KINDS = ["Flat", "IVF,Flat", "IVF,SQfp16", "IVF,SQ8", "HNSW16"]


def built(folder, kind, vectors=None):
    """The files of an index of one shard, and its manifest."""
    vectors = vectors_of(400) if vectors is None else vectors
    settings = IndexSettings(factory=kind, shards=1, recall=0.5, at=20, queries=100)
    manifest = build_index(VectorArray(vectors), folder, settings=settings)
    return folder / "0.faiss", folder / "0.rows.npy", manifest


@pytest.mark.parametrize("kind", [*KINDS, "IVF8,PQ8x4fs,RFlat"])
def test_the_same_build_gives_the_same_bytes_and_loads_from_files(kind, tmp_path):
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    index, rows, manifest = built(tmp_path / "one", kind)
    again, _, same = built(tmp_path / "two", kind)
    faiss.omp_set_num_threads(threads)
    assert index.read_bytes() == again.read_bytes()
    if "PQ" not in kind:  # where it is one ladder that is climbed
        assert manifest.to_json() == same.to_json()
    queries = vectors_of(4, seed=1)
    left = open_shard(index, rows, manifest=manifest, number=0).shard.search(queries, 9)
    made = IndexShard(faiss.read_index(str(index)), np.load(rows), setting=manifest.setting)
    np.testing.assert_array_equal(left[0], made.search(queries, 9)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_index_is_refused_by_name(kind, tmp_path):
    index, rows, manifest = built(tmp_path, kind)
    content = index.read_bytes()
    for number, broken in enumerate((b"", content[:3], content[: len(content) // 2], content[:-1])):
        path = tmp_path / f"cut{number}.faiss"
        path.write_bytes(broken)
        with pytest.raises(ReleaseError, match=rf"cut{number}\.faiss and its rows have"):
            open_shard(path, rows, manifest=manifest, number=0)
    path = tmp_path / "other.faiss"
    path.write_bytes(b"x" * len(content))
    with pytest.raises(ReleaseError, match=r"other\.faiss is no FAISS index"):
        open_shard(path, rows, manifest=manifest, number=0)
    with pytest.raises(ReleaseError, match=r"gone\.faiss is no FAISS index"):
        open_shard(tmp_path / "gone.faiss", rows, manifest=manifest, number=0)


def test_an_index_of_other_vectors_is_refused(tmp_path):
    built(tmp_path, "Flat")
    assert len(shards_in(tmp_path, of=VectorArray(vectors_of(400)))) == 1
    with pytest.raises(ReleaseError, match=r"is of other vectors: run `python -m jobs\.build_index`"):
        shards_in(tmp_path, of=VectorArray(vectors_of(400, seed=1)))
    with pytest.raises(ReleaseError, match=r"no index in .*nowhere: run `python -m jobs\.build_index`"):
        shards_in(tmp_path / "nowhere", of=VectorArray(vectors_of(400)))


def test_an_index_with_the_rows_of_another_is_refused():
    index = build_shard(VectorArray(vectors_of(400)), ShardType()).index
    with pytest.raises(ReleaseError, match="an index of 400 items has rows of 399"):
        IndexShard(index, np.arange(399))


def memory_of(folder, manifest, found):
    """KiB of the file's mapping in a process that has loaded the shard and searched all of it."""
    shard = open_shard(folder / "0.faiss", folder / "0.rows.npy", manifest=manifest, number=0).shard
    shard.turn({"nprobe": 10**6})
    shard.search(np.ones((4, 256), np.float32), 50)
    lines = Path("/proc/self/smaps").read_text().split("\n")
    start = next(n for n, line in enumerate(lines) if line.endswith("0.faiss"))
    found.put({line.split(":")[0]: int(line.split()[1]) for line in lines[start + 1 : start + 20]})


@pytest.mark.parametrize("kind", ["IVF8,Flat", "IVF8,SQ8"])
def test_processes_share_the_memory_of_a_loaded_file(kind, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(20_000, 256)).astype(np.float32)
    index, _, manifest = built(tmp_path, kind, vectors)
    spawn = multiprocessing.get_context("spawn")
    found = spawn.Queue()
    process = spawn.Process(target=memory_of, args=(tmp_path, manifest, found))
    process.start()
    memory = found.get(timeout=60)
    process.join()
    size = index.stat().st_size / 1024
    assert memory["Rss"] > 0.9 * size  # it was read
    assert memory["Anonymous"] < 0.05 * size  # and is nobody's own: these are pages of the file
