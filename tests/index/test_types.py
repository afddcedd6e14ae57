"""Each type of shard keeps the contract of all."""

from recsys.index.shard import IndexShard
from tests.contracts.index import IndexContract


class TestFlat(IndexContract):
    factory = "Flat"


class TestInvertedFile(IndexContract):
    factory = "IVF,Flat"


class TestHalfFloats(IndexContract):
    factory = "IVF,SQfp16"
    precision = 1e-3


class TestBytes(IndexContract):
    factory = "IVF,SQ8"
    precision = 2e-2
    recall = 0.9


class TestProductQuantized(IndexContract):
    factory = "IVF8,PQ8x4fs,Refine(Flat)"
    recall = 0.75


class TestRefinedByHalfFloats(IndexContract):
    factory = "IVF8,PQ8x4fs,Refine(SQfp16)"
    precision = 1e-3
    recall = 0.75


class TestGraph(IndexContract):
    factory = "HNSW16"


class TestWithoutSelection(IndexContract):
    """As on a GPU, which does not pass over what it is told."""

    factory = "IVF,Flat"

    def opened(self, shard: IndexShard) -> IndexShard:
        shard.selects = False
        return shard
