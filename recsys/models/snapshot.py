"""All retrieval models as of one moment, and the item columns that go with them.

A snapshot is what a release serves, and what the ranker's training slices are replayed with: models
of an earlier moment propose, and what happened later labels. Its models are those of the two-stage
pipeline, or a blend that is served in a single stage. Arrays only: it knows no files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys.models.blend import FittedBlend
from recsys.models.item_to_item.table import ItemTable
from recsys.models.two_tower.user_encoder import UserEncoder


@dataclass(frozen=True, slots=True)
class PipelineModels:
    """What proposes to the rankers of the two-stage pipeline, beside history and popularity."""

    encoder: UserEncoder  # its items are the snapshot's vectors
    ease: ItemTable
    basket: ItemTable


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Rows 0 .. V - 1 are the items known before `as_of`."""

    as_of: int  # epoch seconds: nothing from this moment or later was seen
    models: PipelineModels | FittedBlend
    vectors: np.ndarray  # float32 [V, D], unit norm, or 0 where nothing is known of an item
    popularity: np.ndarray  # float32 [V]
    item_features: np.ndarray  # float32 [V, F]
    category: np.ndarray  # int32 [V], -1 = none

    def __len__(self) -> int:
        return len(self.vectors)

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Part name -> named arrays: how a snapshot travels and is stored."""
        items = {
            "as_of": np.array(self.as_of),
            "popularity": self.popularity,
            "features": self.item_features,
            "category": self.category,
        }
        models = self.models
        if isinstance(models, FittedBlend):
            return {"blend": dict(models.arrays()), "vectors": {"vectors": self.vectors}, "items": items}
        return {
            "two_tower": {"vectors": self.vectors, **models.encoder.arrays()},
            "ease": {"neighbor": models.ease.neighbor, "weight": models.ease.weight},
            "basket": {"neighbor": models.basket.neighbor, "weight": models.basket.weight},
            "items": items,
        }

    @classmethod
    def from_arrays(cls, parts: Mapping[str, Mapping[str, np.ndarray]]) -> "Snapshot":
        """The inverse of `arrays`."""
        models: PipelineModels | FittedBlend
        if "blend" in parts:
            models, vectors = FittedBlend.from_arrays(parts["blend"]), parts["vectors"]["vectors"]
        else:
            models = PipelineModels(
                UserEncoder.from_arrays(parts["two_tower"]),
                ease=ItemTable(parts["ease"]["neighbor"], parts["ease"]["weight"]),
                basket=ItemTable(parts["basket"]["neighbor"], parts["basket"]["weight"]),
            )
            vectors = parts["two_tower"]["vectors"]
        items = parts["items"]
        return cls(
            as_of=int(items["as_of"]),
            models=models,
            vectors=vectors,
            popularity=items["popularity"],
            item_features=items["features"],
            category=items["category"],
        )
