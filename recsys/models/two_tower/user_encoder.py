"""The user half of a two-tower model for serving: numpy only, arrays only.

Decides how a history is pooled; the torch model trains with the same `pooling_weights`, `places` and
`clock`. Serves users it has never seen, and encodes new items from their content. Loading and saving is
someone else's: an encoder is a dictionary of named arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from scipy import sparse

from recsys.types import DAY, HOUR, Histories


def pooling_weights(
    histories: Histories, *, now: np.ndarray, half_lives_days: tuple[float, ...]
) -> np.ndarray:
    """Weight of each event in each pooled vector, float32 [H, M]: halved for each half-life of age at
    `now` int64 [B] (inf = all alike), summing to 1 over a request's events."""
    owner = histories.request
    age = np.maximum((now[owner] - histories.time) / DAY, 0)
    newest = np.full(len(histories), np.inf)
    np.minimum.at(newest, owner, age)
    age -= newest[owner]  # relative age: the sum can't underflow for a user who was long away
    weights = np.exp2(-age / np.asarray(half_lives_days, np.float64)[:, None])
    if not len(half_lives_days):
        return weights.astype(np.float32)
    total = np.stack([np.bincount(owner, w, len(histories)) for w in weights])
    return (weights / total[:, owner]).astype(np.float32)


def places(histories: Histories) -> np.ndarray:
    """How many events of the same history are newer, int64 [M]: 0 for the newest."""
    return (np.repeat(histories.offsets[1:], histories.counts) - 1 - np.arange(len(histories.item))).astype(
        np.int64
    )


def clock(now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hour of the day (UTC) and day of the week (0 = Thursday) of epoch seconds `now` [B], int64 [B]."""
    return now // HOUR % 24, now // DAY % 7


def standardize(features: np.ndarray, *, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """log(1 + |x|), standardized, float32 [B, F]; NaN = the mean, 0."""
    return np.nan_to_num((np.log1p(np.abs(features)) - mean) / scale).astype(np.float32)


@dataclass(frozen=True, slots=True)
class UserEncoder:
    """Histories and user features to unit query vectors; d dimensions, H half-lives, F features.

    With attention the linear map takes one more pooled vector: A = 1, else 0. What a model does not have
    is an array of no rows.
    """

    history: np.ndarray  # float32 [V, d] embedding of each item as an event
    half_lives_days: np.ndarray  # float32 [H]
    weight: np.ndarray  # float32 [d, (H + A) d + F]
    bias: np.ndarray  # float32 [d]
    feature_mean: np.ndarray  # float32 [F] of log(1 + |feature|); scale inf = not used
    feature_scale: np.ndarray  # float32 [F]
    token: np.ndarray  # float32 [buckets, d]
    query: np.ndarray  # float32 [d] what attention looks for
    query_newest: np.ndarray  # float32 [d, d] how the newest event changes that
    place: np.ndarray  # float32 [P] attention for being the newest event, the one before, ...
    hour: np.ndarray  # float32 [24, d]
    weekday: np.ndarray  # float32 [7, d]

    def arrays(self) -> Mapping[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "UserEncoder":
        return cls(**{f.name: arrays[f.name] for f in fields(cls)})

    def encode(
        self,
        histories: Histories,
        *,
        now: np.ndarray,
        user_features: np.ndarray | None = None,
        more: np.ndarray | None = None,
    ) -> np.ndarray:
        """Unit query vectors float32 [B, d]; `now` int64 [B], `user_features` float32 [B, F], and `more`
        float32 [B, d] that is known of the users.

        Events of rows that the encoder does not know count nothing; an empty history is encoded from
        the rest alone.
        """
        known = histories.where((histories.item >= 0) & (histories.item < len(self.history)))
        weights = pooling_weights(known, now=now, half_lives_days=tuple(self.half_lives_days))
        if len(self.query):
            weights = np.concatenate((weights, self._attention(known)[None]))
        shape = (len(known), len(self.history))
        parts = [
            sparse.csr_array((w, known.item, known.offsets), shape=shape) @ self.history for w in weights
        ]
        if user_features is not None:
            parts.append(standardize(user_features, mean=self.feature_mean, scale=self.feature_scale))
        users = np.concatenate(parts, axis=1, dtype=np.float32) @ self.weight.T + self.bias
        if more is not None:
            users += more
        if len(self.hour):
            hour, weekday = clock(now)
            users += self.hour[hour] + self.weekday[weekday]
        return _unit(users)

    def _attention(self, histories: Histories) -> np.ndarray:
        """Weight of each event by attention, float32 [M], summing to 1 over a request's events."""
        owner, events = histories.request, self.history[histories.item]
        logit = events @ self.query
        if len(self.place):
            place = places(histories)
            newest = np.zeros((len(histories), self.history.shape[1]), np.float32)
            newest[owner[place == 0]] = events[place == 0]
            logit += np.einsum("md,md->m", (newest @ self.query_newest)[owner], events)
            logit += self.place[np.minimum(place, len(self.place) - 1)]
        largest = np.full(len(histories), -np.inf, np.float32)
        np.maximum.at(largest, owner, logit)
        strength = np.exp(logit - largest[owner])
        total = np.bincount(owner, strength, len(histories))
        return (strength / total[owner]).astype(np.float32)


def encode_content(token: np.ndarray, *, offsets: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Unit item vectors float32 [n, d] from hashed content alone (ragged `offsets` [n + 1]), by the embedding
    of each token, float32 [buckets, d]. An item without a token has no vector: NaN."""
    counts = np.diff(offsets)
    bag = sparse.csr_array(
        (np.ones(len(tokens), np.float32), tokens, offsets), shape=(len(counts), len(token))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return _unit((bag @ token) / counts[:, None].astype(np.float32), empty=np.nan)


def _unit(vectors: np.ndarray, empty: float = 0.0) -> np.ndarray:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (
        (vectors / np.maximum(norm, 1e-12)).astype(np.float32)
        if empty == 0
        else (vectors / norm).astype(np.float32)
    )
