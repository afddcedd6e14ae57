"""Which types there are, and which one a catalog gets."""

import faiss
import numpy as np
import pytest

from recsys.errors import CapacityError, SettingsError
from recsys.index.build import build_shard
from recsys.index.factory import ShardType, cells_for, shard_type
from recsys.index.vectors import VectorArray
from tests.contracts.index import vectors_of


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("Flat", "Flat"),
        ("IVF64,Flat", "IVF64,Flat"),
        ("IVF,SQ8", "IVF128,SQ8"),
        ("IVF,SQfp16", "IVF128,SQfp16"),
        ("IVF32,PQ8x4fs", "IVF32,PQ8x4fs"),
        ("IVF32,PQ8x4fs,Refine(SQfp16)", "IVF32,PQ8x4fs,Refine(SQfp16)"),
        ("IVF32,PQ8x4fs,RFlat", "IVF32,PQ8x4fs,Refine(Flat)"),
        ("HNSW32", "HNSW32"),
        ("auto", "IVF128,SQfp16"),
    ],
)
def test_a_type_by_its_name(factory, said):
    assert str(shard_type(factory, items=20_000, dimensions=16)) == said


@pytest.mark.parametrize(
    "factory",
    ["", "flat", "IVF16", "IVF16,PQ8", "LSH", "PCA8,Flat", "IVF16,PQ5x4fs", "HNSW1", "HNSW", "Flat "],
)
def test_a_type_that_there_is_not_is_refused_by_name(factory):
    with pytest.raises(SettingsError, match=r"index\.factory = "):
        shard_type(factory, items=20_000, dimensions=16)


def test_small_shards_are_exact_and_larger_ones_keep_what_memory_allows():
    assert str(shard_type("auto", items=4_999, dimensions=64)) == "Flat"
    assert str(shard_type("auto", items=1_000_000, dimensions=64)) == "IVF1024,SQfp16"
    assert str(shard_type("auto", items=1_000_000, dimensions=64, memory_mb=140)) == "IVF1024,SQfp16"
    assert str(shard_type("auto", items=1_000_000, dimensions=64, memory_mb=80)) == "IVF1024,SQ8"
    with pytest.raises(CapacityError, match=r"takes 72 MB at the least.*memory_mb is 40: .* 2 times as many"):
        shard_type("auto", items=1_000_000, dimensions=64, memory_mb=40)


def test_cells_are_near_the_square_root_and_have_items():
    assert [cells_for(n) for n in (0, 1, 100, 1000, 40_000, 1_000_000, 10_000_000)] == [
        1, 1, 4, 32, 256, 1024, 4096,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    ["Flat", "IVF64,Flat", "IVF64,SQfp16", "IVF64,SQ8", "IVF64,PQ16x4fs,Refine(SQfp16)", "HNSW16"],
)
def test_the_size_of_a_vector_is_what_a_file_takes(kind):
    made = shard_type(kind, items=20_000, dimensions=32)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(20_000, 32)).astype(np.float32)
    written = len(faiss.serialize_index(build_shard(VectorArray(vectors), made).index))
    assert written / 20_000 == pytest.approx(made.bytes_per_vector(32), rel=0.1)


def test_more_cells_than_vectors_are_refused():
    with pytest.raises(SettingsError, match="40 vectors can't fill its cells"):
        build_shard(VectorArray(vectors_of(40)), ShardType(64, "Flat"))
