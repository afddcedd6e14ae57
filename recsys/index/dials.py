"""What of an index can be turned between fast and thorough, after it was built.

A setting is a mapping: `nprobe` (cells of an inverted file that are visited), `k_factor` (how many times k
are judged again by the refined vectors), `efSearch` (how wide a graph is searched).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

import faiss
import numpy as np

Setting = Mapping[str, float]
K_FACTORS = (1, 2, 4, 8, 16)
GRAPH_SHARE = 0.1  # of all vectors: a graph that would be searched wider is not used


def told(setting: Setting) -> str:
    """As people read it."""
    return ", ".join(f"{name} {value:g}" for name, value in setting.items()) or "exact"


@dataclass(frozen=True, slots=True)
class Dials:
    """Those of an index: what stands inside of what."""

    index: faiss.Index
    refine: faiss.IndexRefine | None
    cells: faiss.IndexIVF | None
    graph: faiss.IndexHNSW | None

    @classmethod
    def of(cls, index: faiss.Index) -> Self:
        index = faiss.downcast_index(index)
        refine = index if isinstance(index, faiss.IndexRefine) else None
        inner = faiss.downcast_index(refine.base_index) if refine else index
        cells = inner if isinstance(inner, faiss.IndexIVF) else None
        return cls(index, refine, cells, inner if isinstance(inner, faiss.IndexHNSW) else None)

    def ladders(self, at: int) -> Iterator[list[Setting]]:
        """Settings to try for the `at` nearest, each list from fast to thorough."""
        if self.graph is not None:
            yield [{"efSearch": width} for width in _ladder(at, max(64 * at, 2), most=self.index.ntotal)]
        elif self.cells is not None:
            probes = _ladder(1, self.cells.nlist, most=self.cells.nlist)
            for factor in K_FACTORS if self.refine else (None,):
                more = {} if factor is None else {"k_factor": factor}
                yield [{"nprobe": probe, **more} for probe in probes]
        else:
            yield [{}]

    def turn(self, setting: Setting) -> None:
        if self.refine is not None:
            self.refine.k_factor = float(setting.get("k_factor", self.refine.k_factor))
        if self.cells is not None:
            # More probes than cells make the fast scan miss what it has.
            self.cells.nprobe = min(int(setting.get("nprobe", self.cells.nprobe)), self.cells.nlist)
        if self.graph is not None:
            self.graph.hnsw.efSearch = int(setting.get("efSearch", self.graph.hnsw.efSearch))

    def search_of(self, selector: Any, *, effort: float) -> "Search":
        """A search of what `selector` allows, `effort` times as thorough as turned."""
        everything = self.index.ntotal
        if self.graph is not None:
            width = ceil(self.graph.hnsw.efSearch * effort)
            if width < everything * GRAPH_SHARE:
                return Search(self.index, faiss.SearchParametersHNSW(sel=selector, efSearch=width), False)
            # A walk need not come by the few that are allowed; the graph's vectors are all looked at.
            return Search(self.graph.storage, faiss.SearchParameters(sel=selector), True)
        if self.cells is None:
            return Search(self.index, faiss.SearchParameters(sel=selector), True)
        probes = min(ceil(self.cells.nprobe * effort), self.cells.nlist)
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        if self.refine is not None:
            factor = self.refine.k_factor
            parameters = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=parameters)
        return Search(self.index, parameters, probes == self.cells.nlist)


@dataclass(frozen=True, slots=True)
class Search:
    """A way to search."""

    index: faiss.Index
    parameters: faiss.SearchParameters
    all_seen: bool  # there is no more thorough one

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [B, k] and positions int64 [B, k], -1 = none."""
        found: tuple[np.ndarray, np.ndarray] = self.index.search(queries, k, params=self.parameters)
        return found


def _ladder(first: int, last: int, *, most: int) -> list[int]:
    """Whole numbers from first to last, each about 1.2 times the one before and none above `most`."""
    rungs, at = [], float(first)
    while at < last:
        rungs.append(min(round(at), most))
        at = max(at * 1.2, at + 1)
    rungs.append(min(last, most))
    return list(dict.fromkeys(rungs))
