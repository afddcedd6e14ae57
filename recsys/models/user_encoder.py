"""The user half of a two-tower model for serving: numpy only, arrays only.

Decides how a history is pooled; the torch model trains with the same `pooling_weights`. Serves users
it has never seen, and encodes new items from their words. Loading and saving is someone else's: an
encoder is a dictionary of named arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from scipy import sparse

from recsys.types import DAY, Histories


def pooling_weights(
    histories: Histories, *, now: np.ndarray, half_lives_days: tuple[float, ...]
) -> np.ndarray:
    """Weight of each event in each pooled vector, float32 [H, M]: halved for each half-life of age at
    `now` int64 [B], summing to 1 over a request's events."""
    owner = histories.request
    age = np.maximum((now[owner] - histories.time) / DAY, 0)
    newest = np.full(len(histories), np.inf)
    np.minimum.at(newest, owner, age)
    age -= newest[owner]  # relative age: the sum can't underflow for a user who was long away
    weights = np.exp2(-age / np.asarray(half_lives_days, np.float64)[:, None])
    total = np.stack([np.bincount(owner, w, len(histories)) for w in weights])
    return (weights / total[:, owner]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class UserEncoder:
    """Histories and user features to unit query vectors; d dimensions, H half-lives, F features."""

    history: np.ndarray  # float32 [V, d] embedding of each item as an event
    half_lives_days: np.ndarray  # float32 [H]
    weight: np.ndarray  # float32 [d, H d + F]
    bias: np.ndarray  # float32 [d]
    feature_mean: np.ndarray  # float32 [F] of log(1 + |feature|); scale inf = not used
    feature_scale: np.ndarray  # float32 [F]
    token: np.ndarray  # float32 [buckets, d]

    def arrays(self) -> Mapping[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "UserEncoder":
        return cls(**{f.name: arrays[f.name] for f in fields(cls)})

    def encode(self, histories: Histories, *, now: np.ndarray, user_features: np.ndarray) -> np.ndarray:
        """Unit query vectors float32 [B, d]; `now` int64 [B], `user_features` float32 [B, F].

        Events of rows that the encoder does not know count nothing; an empty history is encoded from
        the features alone.
        """
        known = histories.where((histories.item >= 0) & (histories.item < len(self.history)))
        weights = pooling_weights(known, now=now, half_lives_days=tuple(self.half_lives_days))
        shape = (len(known), len(self.history))
        pooled = [
            sparse.csr_array((w, known.item, known.offsets), shape=shape) @ self.history for w in weights
        ]
        features = np.nan_to_num((np.log1p(np.abs(user_features)) - self.feature_mean) / self.feature_scale)
        return _unit(
            np.concatenate([*pooled, features], axis=1, dtype=np.float32) @ self.weight.T + self.bias
        )

    def encode_new_items(self, *, offsets: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Unit item vectors float32 [n, d] from hashed title tokens alone (ragged `offsets` [n + 1]).

        A title without a token has no vector: NaN.
        """
        counts = np.diff(offsets)
        bag = sparse.csr_array(
            (np.ones(len(tokens), np.float32), tokens, offsets), shape=(len(counts), len(self.token))
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return _unit((bag @ self.token) / counts[:, None].astype(np.float32), empty=np.nan)


def _unit(vectors: np.ndarray, empty: float = 0.0) -> np.ndarray:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (
        (vectors / np.maximum(norm, 1e-12)).astype(np.float32)
        if empty == 0
        else (vectors / norm).astype(np.float32)
    )
