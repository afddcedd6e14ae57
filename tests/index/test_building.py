"""A build keeps what it promises: its recall is that of exact search, or there is no index."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import CapacityError, DataError, RecallError, SettingsError
from recsys.hashing import shard_of_rows
from recsys.index.building import FEW, build_index, one_by_one
from recsys.index.exact import best_of, exact_neighbors
from recsys.index.manifest import CURVE, MANIFEST, curve_of
from recsys.index.settings import IndexSettings
from recsys.index.shard import shards_in
from recsys.index.tuning import Point, choose, nearest_with_ties
from recsys.index.vectors import OfShard, VectorArray, VectorFiles, fingerprint, write_vectors
from tests.contracts.index import D, vectors_of

ITEMS, AT = 4000, 30


@pytest.fixture(scope="module")
def queries():
    return np.random.default_rng(5).normal(size=(300, D)).astype(np.float32)


def settings_of(factory: str = "IVF,SQfp16", **changes) -> IndexSettings:
    return IndexSettings(**({"factory": factory, "shards": 3, "at": AT, "queries": 200} | changes))


def recall_of(folder, vectors, queries) -> float:
    answers = [shard.shard.search(queries, AT) for shard in shards_in(folder, of=VectorArray(vectors))]
    rows, _ = best_of(*(np.concatenate(c, axis=1) for c in zip(*answers)), k=AT)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :AT]
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(exact, rows)]))


@pytest.mark.parametrize("factory", ["Flat", "IVF,Flat", "IVF,SQfp16", "IVF,PQ8x4fs,Refine(Flat)", "HNSW16"])
def test_recall_is_what_was_asked_of_queries_that_tuning_never_saw(factory, tmp_path, queries):
    vectors = vectors_of(ITEMS)
    manifest = build_index(
        VectorArray(vectors), tmp_path, settings=settings_of(factory, recall=0.95), queries=queries
    )
    assert manifest.items == sum(shard.items for shard in manifest.shards) == ITEMS
    assert manifest.recall >= 0.94
    assert recall_of(tmp_path, vectors, queries) >= 0.94
    curve = curve_of(json.loads((tmp_path / CURVE).read_bytes()))
    (chosen,) = [point for point in curve if point.setting == manifest.setting]
    assert chosen.held_out == manifest.recall
    ladder = [p for p in curve if p.setting.get("k_factor") == chosen.setting.get("k_factor")]
    earlier = ladder[: ladder.index(chosen)]
    assert all(point.recall - point.error < 0.95 for point in earlier)  # the fastest that suffices


def test_an_index_that_cannot_reach_it_fails_and_says_the_best(tmp_path, queries):
    settings = settings_of("IVF,PQ2x4fs", recall=0.99)
    with pytest.raises(
        RecallError, match=r"0\.\d{4} less an error of 0\.\d{4} at the best \(.*\), not 0\.99"
    ):
        build_index(VectorArray(vectors_of(ITEMS)), tmp_path, settings=settings, queries=queries)
    assert not (tmp_path / MANIFEST).exists()


def test_a_failed_build_leaves_no_index_of_before(tmp_path, queries):
    build_index(VectorArray(vectors_of(500)), tmp_path, settings=settings_of("Flat"), queries=queries)
    with pytest.raises(RecallError):
        build_index(
            VectorArray(vectors_of(ITEMS)),
            tmp_path,
            settings=settings_of("IVF,PQ2x4fs", recall=0.99),
            queries=queries,
        )
    assert not (tmp_path / MANIFEST).exists()


def test_files_and_arrays_give_the_same_index(tmp_path, queries):
    vectors, rows = vectors_of(1000), np.random.default_rng(0).permutation(1000).astype(np.int32)
    write_vectors(tmp_path / "vectors" / "a.parquet", vectors[rows[:700]], rows=rows[:700])
    write_vectors(tmp_path / "vectors" / "b.parquet", vectors[rows[700:]], rows=rows[700:])
    build_index(
        VectorFiles(tmp_path / "vectors"), tmp_path / "one", settings=settings_of("Flat"), queries=queries
    )
    build_index(VectorArray(vectors), tmp_path / "two", settings=settings_of("Flat"), queries=queries)
    (one, two) = (
        [shard.shard.search(queries, AT)[0] for shard in shards_in(tmp_path / name, of=stream)]
        for name, stream in (("one", VectorFiles(tmp_path / "vectors")), ("two", VectorArray(vectors)))
    )
    np.testing.assert_array_equal(one, two)


def test_no_piece_of_work_holds_more_than_its_shard(tmp_path, queries):
    """What travels to a task is a path, and its stream gives its shard's rows alone."""
    write_vectors(tmp_path / "v.parquet", vectors_of(1000))
    seen = []

    def each(function, work):
        work = list(work)
        seen.extend(work)
        return one_by_one(function, work)

    stream = VectorFiles(tmp_path / "v.parquet")
    build_index(stream, tmp_path / "i", settings=settings_of("Flat"), queries=queries, each=each)
    assert len(seen) == 6
    assert all(isinstance(piece.stream, OfShard) for piece in seen)
    sizes = [sum(len(rows) for rows, _ in piece.stream.blocks()) for piece in seen[:3]]
    assert sum(sizes) == 1000
    assert max(sizes) < 400


def test_without_queries_items_ask(tmp_path):
    manifest = build_index(VectorArray(vectors_of(ITEMS)), tmp_path, settings=settings_of(recall=0.9))
    assert manifest.queries == 200
    assert manifest.recall >= 0.89
    nobody = np.zeros((50, D), np.float32)
    again = build_index(
        VectorArray(vectors_of(ITEMS)), tmp_path, settings=settings_of(recall=0.9), queries=nobody
    )
    assert again == manifest


def test_few_items_and_many_shards(tmp_path, queries):
    """Shards without items, and those that a type has nothing to learn from, are exact."""
    vectors = vectors_of(5)
    manifest = build_index(VectorArray(vectors), tmp_path, settings=settings_of(shards=8), queries=queries)
    assert (manifest.items, manifest.recall) == (5, 1.0)
    shards = shards_in(tmp_path, of=VectorArray(vectors))
    assert sorted(len(shard.shard) for shard in shards)[:3] == [0, 0, 0]
    answers = [shard.shard.search(queries[:2], 9) for shard in shards]
    rows, _ = best_of(*(np.concatenate(c, axis=1) for c in zip(*answers)), k=5)
    assert np.sort(rows, axis=1).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_equal_vectors_at_the_last_place_count_as_found(tmp_path):
    """Of fifty equal items any thirty are the thirty nearest."""
    vectors = vectors_of(1000)
    vectors[100:150] = vectors[100] * 20
    manifest = build_index(
        VectorArray(vectors), tmp_path, settings=settings_of("IVF,Flat", recall=1.0), queries=vectors[100:101]
    )
    assert manifest.recall == 1.0


def test_a_shard_that_is_exact_does_not_speak_for_the_others(tmp_path, queries):
    """Its setting is none; chosen for all, it left the others at FAISS's one cell."""
    vectors = vectors_of(3 * FEW)
    sizes = np.bincount(shard_of_rows(np.arange(len(vectors)), 3))
    vectors[np.flatnonzero(shard_of_rows(np.arange(len(vectors)), 3) == 0)[: sizes[0] - FEW + 9]] = 0
    manifest = build_index(VectorArray(vectors), tmp_path, settings=settings_of("IVF,Flat"), queries=queries)
    assert manifest.setting["nprobe"] > 1
    assert min(shard.items for shard in manifest.shards) < FEW < max(s.items for s in manifest.shards)


def test_cells_are_never_more_than_a_shard_has_items(tmp_path, queries):
    settings = settings_of("IVF4096,Flat", shards=2, recall=0.9)
    manifest = build_index(VectorArray(vectors_of(2000)), tmp_path, settings=settings, queries=queries)
    assert manifest.items == 2000


def test_items_of_which_nothing_is_known_make_an_empty_index(tmp_path, queries):
    """As of a shop that is served by popularity alone."""
    nothing = VectorArray(np.zeros((9, D), np.float32))
    for asked in (None, queries):
        manifest = build_index(nothing, tmp_path, settings=settings_of(), queries=asked)
        assert (manifest.items, manifest.recall, manifest.factory) == (0, 1.0, "Flat")
        rows, _ = shards_in(tmp_path, of=nothing)[0].shard.search(queries[:2], 5)
        assert rows.tolist() == [[-1], [-1]]


def test_a_shard_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(CapacityError, match=r"memory_mb"):
        build_index(
            VectorArray(vectors_of(20_000)),
            tmp_path,
            settings=IndexSettings(shards=1, memory_mb=0.1),
        )


@pytest.mark.parametrize(
    "wrong", [{"shards": 0}, {"at": 0}, {"queries": 0}, {"recall": 0}, {"recall": 1.01}, {"memory_mb": 0}]
)
def test_settings_that_can_not_be_are_refused(wrong):
    with pytest.raises(SettingsError, match=f"index.{next(iter(wrong))}"):
        IndexSettings(**wrong)


def test_exact_neighbors_of_blocks_are_those_of_all(queries):
    vectors = vectors_of(500)
    blocks = [(np.arange(s, s + 100, dtype=np.int32), vectors[s : s + 100]) for s in range(0, 500, 100)]
    rows, scores = exact_neighbors(blocks, queries, k=20)
    exact = queries @ vectors.T
    np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1)[:, :20])
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, 1), rtol=1e-4, atol=1e-4)
    rows, scores = exact_neighbors(blocks[:1], queries, k=120)
    assert (rows[:, 100:] == -1).all()
    assert (scores[:, 100:] == -np.inf).all()


def test_ties_go_to_the_lower_row():
    vectors = np.repeat(vectors_of(3), 4, axis=0)
    rows, _ = exact_neighbors(VectorArray(vectors).blocks(), vectors_of(3)[:1], k=12)
    assert all(sorted(rows[0, s : s + 4].tolist()) == rows[0, s : s + 4].tolist() for s in (0, 4, 8))


def test_neighbors_as_near_as_the_last_one():
    rows, scores = np.array([[5, 6, 7, 8, -1]]), np.array([[3.0, 2, 2, 1, -np.inf]])
    assert nearest_with_ties(rows, scores, at=2).tolist() == [[5, 6, 7, -1, -1]]
    assert nearest_with_ties(rows, scores, at=9).tolist() == [[5, 6, 7, 8, -1]]


def test_the_choice_is_the_first_of_a_ladder_and_the_fastest_of_ladders():
    def point(probes, factor, recall, ms):
        return Point({"nprobe": probes, "k_factor": factor}, recall, 0.001, recall, ms)

    found = [point(1, 1, 0.5, 1), point(2, 1, 0.982, 9.0), point(4, 1, 0.99, 3.0)]  # the second was unlucky
    assert choose(found, recall=0.98, what="").setting["nprobe"] == 2
    found += [point(1, 2, 0.9805, 2.0), point(2, 2, 0.985, 4.0)]  # the first is within its error
    assert choose(found, recall=0.98, what="").setting == {"nprobe": 2, "k_factor": 2}


def test_the_fingerprint_is_of_rows_and_vectors(tmp_path):
    vectors = vectors_of(70)
    write_vectors(tmp_path / "v.parquet", vectors)
    assert fingerprint(VectorArray(vectors)) == fingerprint(VectorFiles(tmp_path / "v.parquet"))
    assert fingerprint(VectorArray(vectors)) != fingerprint(VectorArray(vectors[::-1]))
    write_vectors(tmp_path / "v.parquet", vectors, rows=np.arange(70, dtype=np.int32) + 1)
    assert fingerprint(VectorArray(vectors)) != fingerprint(VectorFiles(tmp_path / "v.parquet"))


def test_files_that_hold_no_vectors_are_refused(tmp_path):
    (tmp_path / "v.parquet").write_bytes(b"nothing")
    for path, told in ((tmp_path, "holds no vectors"), (tmp_path / "gone", "holds no vectors")):
        with pytest.raises(DataError, match=told):
            list(VectorFiles(path).blocks())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.parquet in"):
        list(VectorFiles(tmp_path / "empty").blocks())


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"row": [0, 1], "vector": [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]]}, "unlike lengths"),
        ({"row": [0, 1], "vector": [[1.0, 2.0], None]}, "unlike lengths"),
        ({"row": [0, 1], "other": [1, 2]}, "holds no vectors"),
        ({"row": ["a", "b"], "vector": [[1.0], [2.0]]}, "rows are string"),
        ({"row": [0, None], "vector": [[1.0], [2.0]]}, "some may be null"),
        ({"row": [0, 2**31], "vector": [[1.0], [2.0]]}, "holds no vectors .*not in range"),
    ],
)
def test_columns_that_are_none_are_refused(columns, told, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=told):
        list(VectorFiles(tmp_path / "v.parquet").blocks())


def test_files_of_unlike_width_and_rows_that_stand_twice_are_refused(tmp_path):
    write_vectors(tmp_path / "a.parquet", vectors_of(20))
    write_vectors(tmp_path / "b.parquet", vectors_of(20))
    with pytest.raises(DataError, match=r"item row \d+ has two vectors"):
        build_index(VectorFiles(tmp_path), tmp_path / "index", settings=settings_of("Flat"))
    write_vectors(tmp_path / "b.parquet", vectors_of(20)[:, :-1])
    with pytest.raises(DataError, match=r"b\.parquet: vectors of 15 numbers, before of 16"):
        list(VectorFiles(tmp_path).blocks())


def test_an_infinite_vector_is_refused_by_its_row():
    vectors = vectors_of(9)
    vectors[4, 2] = np.inf
    with pytest.raises(DataError, match="the vector of item row 4 is infinite"):
        list(VectorArray(vectors).blocks())
