"""Item vectors as a stream of blocks, so that a catalog of any size passes through a build.

Decides which rows an index holds: an item of which nothing is known (a vector of zeros or NaN) is left
out, for a score of 0 would beat every item that scores below. It knows no FAISS.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import DataError
from recsys.hashing import shard_of_rows

BLOCK = 65_536  # vectors

# (item rows int32 [n], vectors float32 [n, D])
Block = tuple[np.ndarray, np.ndarray]


class VectorStream(Protocol):
    """Can be read again and again."""

    @property
    def dimensions(self) -> int: ...

    def blocks(self) -> Iterator[Block]: ...


@dataclass(frozen=True, slots=True)
class VectorArray:
    """Vectors float32 [V, D] in memory, by item row."""

    vectors: np.ndarray

    @property
    def dimensions(self) -> int:
        return int(self.vectors.shape[1])

    def blocks(self) -> Iterator[Block]:
        for start in range(0, len(self.vectors), BLOCK):
            part = self.vectors[start : start + BLOCK]
            yield _known(np.arange(start, start + len(part), dtype=np.int32), part)


@dataclass(frozen=True, slots=True)
class VectorFiles:
    """Parquet files with columns `row` and `vector` (a list of floats, all of one length); a folder of
    them, or one. Raises DataError where they are not."""

    path: Path

    @property
    def dimensions(self) -> int:
        for _, vectors in self.blocks():
            return int(vectors.shape[1])
        raise DataError(f"{self.path} holds no vector")

    def blocks(self) -> Iterator[Block]:
        files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        if not files:
            raise DataError(f"no *.parquet in {self.path}; give a folder of vectors, or a file")
        width = 0
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    for batch in opened.iter_batches(BLOCK, columns=["row", "vector"]):
                        rows, vectors = _columns(batch, file)
                        width = width or vectors.shape[1]
                        if vectors.shape[1] != width:
                            raise DataError(
                                f"{file}: vectors of {vectors.shape[1]} numbers, before of {width}"
                            )
                        yield _known(rows, vectors)
            except (pa.ArrowInvalid, KeyError, OSError) as error:
                raise DataError(f"{file} holds no vectors (columns row and vector): {error}") from error


@dataclass(frozen=True, slots=True)
class OfShard:
    """Those of one shard, by the hash of the row: a lost shard costs each query the same small share."""

    stream: VectorStream
    shard: int
    shards: int

    @property
    def dimensions(self) -> int:
        return self.stream.dimensions

    def blocks(self) -> Iterator[Block]:
        for rows, vectors in self.stream.blocks():
            own = shard_of_rows(rows, self.shards) == self.shard
            yield rows[own], vectors[own]


def fingerprint(stream: VectorStream) -> str:
    """The same for the same vectors of the same rows, wherever they stand."""
    of_rows, of_vectors = hashlib.sha256(), hashlib.sha256()  # apart, so that blocks may be of any size
    for rows, vectors in stream.blocks():
        of_rows.update(np.ascontiguousarray(rows, np.int32).data)
        of_vectors.update(np.ascontiguousarray(vectors, np.float32).data)
    return hashlib.sha256(of_rows.digest() + of_vectors.digest()).hexdigest()


def write_vectors(path: Path, vectors: np.ndarray, *, rows: np.ndarray | None = None) -> None:
    """Vectors float32 [n, D] of item `rows` (default: 0 .. n - 1) as a file that `VectorFiles` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.arange(len(vectors), dtype=np.int32) if rows is None else rows
    kind = pa.list_(pa.float32(), vectors.shape[1])
    schema = pa.schema([("row", pa.int32()), ("vector", kind)])
    with pq.ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as writer:
        for start in range(0, len(rows), BLOCK):
            part = np.ascontiguousarray(vectors[start : start + BLOCK], np.float32)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), type=kind)
            own = pa.array(rows[start : start + BLOCK], pa.int32())
            writer.write_batch(pa.RecordBatch.from_arrays([own, lists], schema=schema))


def _columns(batch: pa.RecordBatch, file: Path) -> Block:
    rows, lists = batch.column("row"), batch.column("vector")
    lengths = pc.unique(pc.list_value_length(lists))
    if len(lists) and (lists.null_count or len(lengths) != 1):
        raise DataError(f"{file}: vectors of unlike lengths; give each item as many numbers")
    if not pa.types.is_integer(rows.type) or rows.null_count:
        raise DataError(f"{file}: rows are {rows.type}, some may be null; they must be whole numbers")
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return rows.cast(pa.int32()).to_numpy(), flat.reshape(len(lists), -1)


def _known(rows: np.ndarray, vectors: np.ndarray) -> Block:
    square = np.einsum("nd,nd->n", vectors, vectors)
    if np.isinf(square).any():
        row = rows[np.isinf(square)][0]
        raise DataError(f"the vector of item row {row} is infinite; train the model anew")
    known = square > 0  # not so for NaN
    return (rows, vectors) if known.all() else (rows[known], vectors[known])
