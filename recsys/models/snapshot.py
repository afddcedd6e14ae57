"""All retrieval models as of one moment, and the item columns that go with them.

A snapshot is what a release serves, and what the ranker's training slices are replayed with: models
of an earlier moment propose, and what happened later labels. Arrays only: it knows no files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys.models.item_to_item import ItemTable
from recsys.models.user_encoder import UserEncoder


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Rows 0 .. V - 1 are the items known before `as_of`."""

    as_of: int  # epoch seconds: nothing from this moment or later was seen
    encoder: UserEncoder
    vectors: np.ndarray  # float32 [V, D], unit norm
    ease: ItemTable
    basket: ItemTable
    popularity: np.ndarray  # float32 [V]
    item_features: np.ndarray  # float32 [V, F]
    category: np.ndarray  # int32 [V], -1 = none

    def __len__(self) -> int:
        return len(self.vectors)

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Part name -> named arrays: how a snapshot travels and is stored."""
        return {
            "two_tower": {"vectors": self.vectors, **self.encoder.arrays()},
            "ease": {"neighbor": self.ease.neighbor, "weight": self.ease.weight},
            "basket": {"neighbor": self.basket.neighbor, "weight": self.basket.weight},
            "items": {
                "as_of": np.array(self.as_of),
                "popularity": self.popularity,
                "features": self.item_features,
                "category": self.category,
            },
        }

    @classmethod
    def from_arrays(cls, parts: Mapping[str, Mapping[str, np.ndarray]]) -> "Snapshot":
        """The inverse of `arrays`."""
        items = parts["items"]
        return cls(
            as_of=int(items["as_of"]),
            encoder=UserEncoder.from_arrays(parts["two_tower"]),
            vectors=parts["two_tower"]["vectors"],
            ease=ItemTable(parts["ease"]["neighbor"], parts["ease"]["weight"]),
            basket=ItemTable(parts["basket"]["neighbor"], parts["basket"]["weight"]),
            popularity=items["popularity"],
            item_features=items["features"],
            category=items["category"],
        )
