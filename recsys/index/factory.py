"""The types of a shard, by FAISS's own names for them, and which one suits a catalog.

    Flat                         exact                                 4 D bytes a vector
    IVF1024,Flat                 inverted file                         4 D + 8
    IVF1024,SQfp16               with half floats                      2 D + 8
    IVF1024,SQ8                  a byte a number                       D + 8
    IVF1024,PQ32x4fs,Refine(SQfp16)   fast scan of 32 4-bit codes, the best judged again   2 D + 24
    HNSW32                       graph                                 4 D + 264

`IVF,...` takes as many cells as suit the shard. Decides what the automatic choice goes by: the sizes
and speeds of `benchmarks/index.py`.
"""

import re
from dataclasses import dataclass

from recsys.errors import CapacityError, SettingsError

EXACT_BELOW = 5_000  # items in a shard: to look at all is as fast
PER_CELL_AT_LEAST = 20
_SCALARS = {"Flat": 4.0, "SQfp16": 2.0, "SQbf16": 2.0, "SQ8": 1.0, "SQ4": 0.5}  # bytes a number
_FORM = re.compile(
    r"(?P<exact>Flat)"
    r"|IVF(?P<cells>\d*),(?:(?P<scalar>Flat|SQfp16|SQbf16|SQ8|SQ4)"
    r"|PQ(?P<subs>\d+)x4fs(?:,Refine\((?P<refine>Flat|SQfp16|SQbf16|SQ8)\)|(?P<rflat>,RFlat))?)"
    r"|HNSW(?P<links>\d+)"
)


@dataclass(frozen=True, slots=True)
class ShardType:
    """A factory string, understood. Made by `shard_type` or `chosen`."""

    cells: int = 0  # of an inverted file; 0 = none
    scalar: str = ""  # how numbers are kept in its cells or, alone, exactly; "" = product quantization, graph
    subs: int = 0  # sub-quantizers of 4 bits
    refine: str = ""  # how the numbers are kept by which the best are judged again; "" = they are not
    links: int = 0  # of a graph

    def __str__(self) -> str:
        if self.links:
            return f"HNSW{self.links}"
        if not self.cells:
            return "Flat"
        code = self.scalar or f"PQ{self.subs}x4fs" + (f",Refine({self.refine})" if self.refine else "")
        return f"IVF{self.cells},{code}"

    def bytes_per_vector(self, dimensions: int) -> float:
        if self.links:
            return 4 * dimensions + 8 * self.links + 8  # 2 * links of 4 bytes on the lowest floor
        if not self.cells:
            return 4 * dimensions
        refined = _SCALARS.get(self.refine, 0.0) * dimensions
        return 8 + refined + (_SCALARS[self.scalar] * dimensions if self.scalar else self.subs / 2)


def shard_type(factory: str, *, items: int, dimensions: int, memory_mb: float | None = None) -> ShardType:
    """The type of a shard of `items`, by its FAISS name or "auto". Raises SettingsError, CapacityError."""
    if factory == "auto":
        return chosen(items, dimensions=dimensions, memory_mb=memory_mb)
    found = _FORM.fullmatch(factory)
    if found is None:
        raise SettingsError(
            f"index.factory = {factory!r}: there are auto, Flat, IVF<cells>,<Flat|SQfp16|SQ8>, "
            "IVF<cells>,PQ<n>x4fs,Refine(<Flat|SQfp16|SQ8>) and HNSW<links>"
        )
    subs, links = int(found["subs"] or 0), int(found["links"] or 0)
    if subs and dimensions % subs:
        raise SettingsError(
            f"index.factory = {factory!r}: {dimensions} dimensions have no {subs} equal parts"
        )
    if links and not 2 <= links <= 512:
        raise SettingsError(f"index.factory = {factory!r}: give a graph 2 to 512 links")
    cells = 0
    if found["cells"] is not None:
        cells = min(int(found["cells"] or cells_for(items)), max(items, 1)) or 1
    refine = found["refine"] or ("Flat" if found["rflat"] else "")
    return ShardType(cells, found["scalar"] or "", subs, refine, links)


def chosen(items: int, *, dimensions: int, memory_mb: float | None = None) -> ShardType:
    """The fastest type that reaches a recall of .98 and fits. Raises CapacityError."""
    if items < EXACT_BELOW:
        return ShardType()
    cells = cells_for(items)
    kinds = [ShardType(cells, "SQfp16"), ShardType(cells, "SQ8")]
    sizes = [kind.bytes_per_vector(dimensions) * items / 1e6 for kind in kinds]
    for kind, size in zip(kinds, sizes):
        if memory_mb is None or size <= memory_mb:
            return kind
    raise CapacityError(
        f"a shard of {items:,} items takes {sizes[-1]:,.0f} MB at the least and index.memory_mb is "
        f"{memory_mb:,.0f}: set index.shards to {-(-sizes[-1] // (memory_mb or 1)):.0f} times as many"
    )


def cells_for(items: int) -> int:
    """A power of two near the square root, as long as each cell has some items."""
    most = max(items // PER_CELL_AT_LEAST, 1)
    cells = 1
    while cells * 2 <= most and cells * cells * 2 <= items:
        cells *= 2
    return cells
