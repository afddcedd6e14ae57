"""What a two-tower fit leaves: item vectors, the user encoder, and what is known of the trained users.

Decides that a stranger is encoded from the history alone, and that an item which nothing taught and
which has no content has no vector. Numpy only; a dictionary of named arrays when it travels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from recsys.interactions import Queries, Tokens
from recsys.models.retrieval import Arrays, Vectors
from recsys.models.two_tower.user_encoder import UserEncoder
from recsys.types import ragged_index

_ENCODER = "encoder."


@dataclass(frozen=True, slots=True)
class KnownUsers:
    """Queries to unit vectors: the encoder's, with what is known of trained users. What a model does not
    have is an array of no rows."""

    encoder: UserEncoder
    user_id: np.ndarray  # float32 [buckets, d]
    user_bucket: np.ndarray  # int32 [U]
    attribute: np.ndarray  # float32 [buckets, d]
    attribute_offsets: np.ndarray  # int32 [U + 1]
    attribute_id: np.ndarray  # int32 [T] folded

    def encode(self, queries: Queries) -> np.ndarray:
        """Unit vectors float32 [B, d]."""
        more = np.zeros((len(queries), self.encoder.history.shape[1]), np.float32)
        if len(self.user_bucket):
            known = np.flatnonzero((queries.user >= 0) & (queries.user < len(self.user_bucket)))
            more[known] += self.user_id[self.user_bucket[queries.user[known]]]
        if len(self.attribute):
            known = np.flatnonzero((queries.user >= 0) & (queries.user < len(self.attribute_offsets) - 1))
            user = queries.user[known]
            counts = np.diff(self.attribute_offsets)[user]
            ids = self.attribute_id[ragged_index(self.attribute_offsets[user], counts)]
            np.add.at(
                more, np.repeat(known, counts), self.attribute[ids] / np.repeat(counts, counts)[:, None]
            )
        return self.encoder.encode(queries.histories, now=queries.now, more=more)

    def arrays(self) -> Arrays:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "encoder"}
        return own | {_ENCODER + name: array for name, array in self.encoder.arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "KnownUsers":
        encoder = {k.removeprefix(_ENCODER): a for k, a in arrays.items() if k.startswith(_ENCODER)}
        own = {f.name: arrays[f.name] for f in fields(cls) if f.name != "encoder"}
        return cls(UserEncoder.from_arrays(encoder), **own)


@dataclass(frozen=True, slots=True)
class FittedTwoTower:
    items: np.ndarray  # float32 [V, d] unit vectors; NaN = neither taught nor described
    users: KnownUsers

    def score(self, queries: Queries) -> np.ndarray:
        """Cosine of user and item, float32 [B, V]; -inf = no score."""
        return self.export().score(queries)

    def arrays(self) -> Arrays:
        return {"items": self.items, **self.users.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "FittedTwoTower":
        return cls(arrays["items"], KnownUsers.from_arrays(arrays))

    def export(self) -> Vectors:
        return Vectors(self.items, self.users)


def attributes_of(tokens: Tokens | None, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """`attribute_offsets` and `attribute_id` of users with these attributes."""
    if tokens is None:
        return np.zeros(1, np.int32), np.zeros(0, np.int32)
    return tokens.offsets, (tokens.id % buckets).astype(np.int32)
