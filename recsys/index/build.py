"""One shard's FAISS index from a stream of vectors, which never stand in memory all at once.

Two passes: a sample for what has to be learned, then everything in blocks. Positions in the FAISS index
are 0 .. n - 1 in the order of the stream; which item row each one is stands beside it. Threads are those
that FAISS was given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import faiss
import numpy as np

from recsys.errors import DataError, SettingsError
from recsys.index.cells import SAMPLE, Cells, sample_by_length
from recsys.index.factory import ShardType
from recsys.index.vectors import VectorStream

CODE_SAMPLE = 65_536  # vectors that teach the codes
_CODES = {
    "SQfp16": faiss.ScalarQuantizer.QT_fp16,
    "SQbf16": faiss.ScalarQuantizer.QT_bf16,
    "SQ8": faiss.ScalarQuantizer.QT_8bit,
    "SQ4": faiss.ScalarQuantizer.QT_4bit,
}


@dataclass(frozen=True, slots=True)
class BuiltShard:
    index: faiss.Index
    rows: np.ndarray  # int32 [n]: the item row of each position


def build_shard(
    stream: VectorStream, kind: ShardType, *, query_length: float = 1.0, seed: int = 0
) -> BuiltShard:
    """`query_length` is how long queries are on average: with it cells are put in order. The same stream,
    type and seed give the same index, on one thread to the byte."""
    if not kind.cells:
        index = faiss.index_factory(stream.dimensions, str(kind), faiss.METRIC_INNER_PRODUCT)
        return BuiltShard(index, _add_all(stream, index.add))
    sample = sample_by_length(stream.blocks(), count=max(SAMPLE * kind.cells, CODE_SAMPLE), seed=seed)
    if len(sample) < kind.cells:
        raise SettingsError(
            f"index.factory = {str(kind)!r}: {len(sample):,} vectors can't fill its cells; give fewer"
        )
    few = np.random.default_rng(seed).permutation(len(sample))[: SAMPLE * kind.cells]
    cells = Cells(sample[np.sort(few)], count=kind.cells, seed=seed)
    if kind.subs:
        return _product_quantized(stream, kind, cells, sample)
    index = _inverted_file(stream.dimensions, kind, cells)
    if kind.scalar != "Flat":
        index.sq.train(sample)
    index.is_trained = True
    rows = _add_all(stream, partial(_add, index, cells))
    _replace_quantizer(index, cells.quantizer(cells.bonus(query_length)))
    return BuiltShard(index, rows)


def _inverted_file(dimensions: int, kind: ShardType, cells: Cells) -> faiss.IndexIVF:
    quantizer = cells.quantizer(np.zeros(kind.cells, np.float32))
    quantizer.this.disown()
    metric = faiss.METRIC_INNER_PRODUCT
    if kind.scalar == "Flat":
        index = faiss.IndexIVFFlat(quantizer, dimensions, kind.cells, metric)
    else:
        # Not by residual: a score must not start from that of the cell, which has the bonus in it.
        code = _CODES[kind.scalar]
        index = faiss.IndexIVFScalarQuantizer(quantizer, dimensions, kind.cells, code, metric, False)
    index.own_fields = True
    return index


def _product_quantized(stream: VectorStream, kind: ShardType, cells: Cells, sample: np.ndarray) -> BuiltShard:
    """Codes of what is left beside the centroid; so the cells are visited without a bonus."""
    dimensions = stream.dimensions
    quantizer = faiss.IndexFlatIP(dimensions)
    quantizer.add(cells.centroids)
    index = faiss.IndexIVFPQ(quantizer, dimensions, kind.cells, kind.subs, 4, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1  # else it complains of small catalogs
    index.train_encoder(len(sample), faiss.swig_ptr(sample), faiss.swig_ptr(cells.nearest(sample)))
    index.is_trained = True
    refine = faiss.index_factory(dimensions, kind.refine, faiss.METRIC_INNER_PRODUCT) if kind.refine else None
    if refine is not None:
        refine.train(sample)

    def add(vectors: np.ndarray) -> None:
        _add(index, cells, vectors)
        if refine is not None:
            refine.add(vectors)

    rows = _add_all(stream, add)
    quick = faiss.IndexIVFPQFastScan(index, 32)
    quick.ntotal = index.ntotal
    for part in (quantizer, index):  # the quick one takes the quantizer with it
        part.this.disown()
    quick.own_fields = True
    if refine is None:
        return BuiltShard(quick, rows)
    whole = faiss.IndexRefine(quick, refine)
    whole.own_fields = whole.own_refine_index = True
    for part in (quick, refine):
        part.this.disown()
    return BuiltShard(whole, rows)


def _add_all(stream: VectorStream, add: Callable[[np.ndarray], object]) -> np.ndarray:
    """The rows in the order in which their vectors were added, int32 [n]."""
    rows = [np.zeros(0, np.int32)]
    for own, vectors in stream.blocks():
        if len(own):
            add(np.ascontiguousarray(vectors, np.float32))
            rows.append(own)
    found = np.concatenate(rows)
    if len(np.unique(found)) != len(found):
        twice = np.sort(found)[1:][np.diff(np.sort(found)) == 0][0]
        raise DataError(f"item row {twice} has two vectors; give each item one")
    return found.astype(np.int32)


def _add(index: faiss.IndexIVF, cells: Cells, vectors: np.ndarray) -> None:
    """FAISS's own `add` would choose the cell by the quantizer, which is made for queries."""
    cell = cells.assign(vectors)
    position = np.arange(index.ntotal, index.ntotal + len(vectors))
    index.add_core(len(vectors), *map(faiss.swig_ptr, (vectors, position, cell)))


def _replace_quantizer(index: faiss.IndexIVF, quantizer: faiss.Index) -> None:
    index.quantizer.this.own(True)  # the old one ends with its wrapper
    quantizer.this.disown()
    index.quantizer = quantizer
