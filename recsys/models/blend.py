"""A blend: several fitted models, each with a weight, merged by rank.

Decides the merge: weighted reciprocal rank fusion (Cormack, Clarke and Büttcher 2009), which needs no
scores that can be compared. It is what the request path's retrieval does with the lists of its
sources, so a blend is served as several sources and their merge.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from recsys.errors import ReleaseError
from recsys.interactions import Queries
from recsys.models.retrieval import Arrays, Export, Fitted
from recsys.models.top_k import top_k

DEPTH = 500  # places of a list that count
CONSTANT = 60.0  # of the fusion, where nobody chose another (Cormack et al. 2009)


@dataclass(frozen=True, slots=True)
class FittedBlend:
    parts: Mapping[str, Fitted]  # by name
    weights: np.ndarray  # float32 [parts] > 0
    constant: float  # added to a rank: the larger it is, the less the first places stand out

    def score(self, queries: Queries) -> np.ndarray:
        """float32 [B, V]; where some items are not asked for, `fused` of what is left ranks better."""
        return self.fused(part.score(queries) for part in self.parts.values())

    def fused(self, scores: Iterable[np.ndarray]) -> np.ndarray:
        """Sum of weight / (constant + rank) over the parts, given their own `scores`: float32 [B, V], -inf
        for what is on no list. Of a single part its own scores."""
        if len(self.parts) == 1:
            return next(iter(scores))
        ranks = (w * rank_scores(own, constant=self.constant) for w, own in zip(self.weights, scores))
        total = sum(ranks, start=np.float32(0))
        return np.where(total == 0, np.float32(-np.inf), total)

    def arrays(self) -> Arrays:
        own = {
            "names": np.array(list(self.parts)),
            "classes": np.array([class_name(part) for part in self.parts.values()]),
            "weights": self.weights,
            "constant": np.array(self.constant),
        }
        parts = (
            {f"{number}.{name}": array for name, array in part.arrays().items()}
            for number, part in enumerate(self.parts.values())
        )
        return {name: array for arrays in (own, *parts) for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "FittedBlend":
        parts = {}
        for number, (name, kind) in enumerate(zip(arrays["names"], arrays["classes"])):
            prefix = f"{number}."
            own = {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
            parts[str(name)] = fitted_class(str(kind)).from_arrays(own)
        return cls(parts, arrays["weights"], float(arrays["constant"]))

    def export(self) -> Export:
        return {name: part.export() for name, part in self.parts.items()}


def as_blend(name: str, fitted: Fitted) -> FittedBlend:
    """What is served of a fit: its parts and their weights. A model alone is a blend of one, whose constant
    orders nothing."""
    if isinstance(fitted, FittedBlend):
        if len(fitted.parts) > 1:
            return FittedBlend(fitted.parts, fitted.weights, fitted.constant)
        ((name, fitted),) = fitted.parts.items()
    return FittedBlend({name: fitted}, np.ones(1, np.float32), CONSTANT)


def rank_scores(scores: np.ndarray, *, constant: float) -> np.ndarray:
    """1 / (constant + rank) of the DEPTH best of each row, the best of rank 1, and 0 of the others; float32
    [B, V] of scores [B, V]. Equal scores are ordered by item."""
    items = scores.shape[1]
    depth = min(DEPTH, items)
    best = top_k(scores, k=depth, tie_order=np.arange(items))
    found = np.zeros((len(best), items + 1), np.float32)  # a column for what is no item
    gain = (1 / (constant + 1 + np.arange(depth))).astype(np.float32)
    np.put_along_axis(found, np.where(best < 0, items, best).astype(np.int64), gain[None], axis=1)
    return found[:, :items]


def class_name(fitted: Fitted) -> str:
    """module:Class, as `fitted_class` takes it."""
    return f"{type(fitted).__module__}:{type(fitted).__qualname__}"


def fitted_class(name: str) -> Any:
    """The class of a stored fit. Raises ReleaseError for one that is not recsys's."""
    module, _, kind = name.partition(":")
    if not module.startswith("recsys."):
        raise ReleaseError(f"{name} is none of recsys's models")
    return getattr(import_module(module), kind)
