"""Sequence models where they serve: a history to a vector, numpy only.

Decides what a history is for such a model: a start token, then the newest `window` events that the
model knows; so an empty history, or one of unknown items alone, is answered by the start token. The
newest event's output is the user's vector. The torch modules beside this file train with the same
arrays under the same names; tests hold that both give the same vectors.
"""

from dataclasses import dataclass

import numpy as np

from recsys.interactions import Queries
from recsys.models.retrieval import NamedArrays, Vectors
from recsys.types import Histories, ragged_index

EPSILON = 1e-5  # of layer norms, as torch's
_BLOCK = 256  # histories that are encoded together


def padded(histories: Histories, *, window: int, start: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Events int64 [B, n + 1]: `start`, the newest `window` events, oldest first, then `padding`; and how
    many events each has, int64 [B], which is where its newest one stands."""
    counts = np.minimum(histories.counts, window).astype(np.int64)
    events = np.full((len(counts), 1 + int(counts.max(initial=0))), padding, np.int64)
    events[:, 0] = start
    place = ragged_index(np.ones_like(counts), counts)
    rows = ragged_index(histories.offsets[1:] - counts, counts)
    events[np.repeat(np.arange(len(counts)), counts), place] = histories.item[rows]
    return events, counts


def held_items(histories: Histories, *, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct items among the newest `window` events of each history: request and item, int64 [H] each,
    by request; and 0 for the newest event's, 1 for what is held before, int64 [H]."""
    newest = np.repeat(histories.offsets[1:].astype(np.int64), histories.counts) - 1
    ago = newest - np.arange(len(newest))
    recent = np.flatnonzero(ago < window)[::-1]  # of an item that is there twice, the newer one comes first
    pair, first = np.unique(histories.request[recent] << 32 | histories.item[recent], return_index=True)
    return pair >> 32, pair & 0xFFFFFFFF, (ago[recent][first] > 0).astype(np.int64)


@dataclass(frozen=True, slots=True)
class SequenceEncoder(NamedArrays):
    """D dimensions, L layers. Fitted model and user encoder in one: items are known by the same vectors as
    events and as candidates."""

    items: np.ndarray  # float32 [V, D]; NaN = neither taught nor described
    start: np.ndarray  # float32 [D] the start token
    input_gain: np.ndarray  # float32 [D] layer norm of events
    input_shift: np.ndarray  # float32 [D]
    output_gain: np.ndarray  # float32 [D] layer norm of user vectors
    output_shift: np.ndarray  # float32 [D]
    window: np.ndarray  # int64 []
    temperature: np.ndarray  # float64 [] of cosines; 0 = scores are inner products
    again: np.ndarray  # float32 [2] added to the score of the newest event's item; of what is held before

    def encode(self, queries: Queries) -> np.ndarray:
        """float32 [B, D]."""
        log = self.known(queries)
        start = len(self.items)
        users = np.empty((len(log), len(self.start)), np.float32)
        by_length = np.argsort(log.counts, kind="stable")
        for first in range(0, len(log), _BLOCK):
            rows = by_length[first : first + _BLOCK]
            events, newest = padded(log.take(rows), window=int(self.window), start=start, padding=start + 1)
            x = self.items[np.minimum(events, start - 1)]  # not of a table with both: it would be copied
            x[events == start], x[events > start] = self.start, 0
            x = layer_norm(x, self.input_gain, self.input_shift)
            users[rows] = layer_norm(self._newest(x, newest), self.output_gain, self.output_shift)
        if self.temperature:
            users /= np.linalg.norm(users, axis=1, keepdims=True) * np.float32(self.temperature)
        return users

    def _newest(self, x: np.ndarray, newest: np.ndarray) -> np.ndarray:
        """Output [B, D] of the layers at position `newest` [B] of `x` [B, n, D]."""
        raise NotImplementedError

    def known(self, queries: Queries) -> Histories:
        """Their histories without what the model doesn't know."""
        log = queries.histories
        known = (log.item >= 0) & (log.item < len(self.items))
        known[known] = ~np.isnan(self.items[log.item[known], 0])
        return log.where(known)

    def score(self, queries: Queries) -> np.ndarray:
        """Inner products; what the history holds gets `again`, too, which the export leaves out."""
        scores = self.export().score(queries)
        request, item, kind = held_items(self.known(queries), window=int(self.window))
        scores[request, item] += self.again[kind]
        return scores

    def export(self) -> Vectors:
        return Vectors(self.items, self)


@dataclass(frozen=True, slots=True)
class SelfAttentionEncoder(SequenceEncoder):
    """SASRec's, H heads; see `recsys.models.sequence.modules.SelfAttention`."""

    bias: np.ndarray  # float32 [L, H, window + 1] by distance; the last is the start token's
    attention_gain: np.ndarray  # float32 [L, D]
    attention_shift: np.ndarray  # float32 [L, D]
    attention_in: np.ndarray  # float32 [L, 3 D, D]
    attention_in_bias: np.ndarray  # float32 [L, 3 D]
    attention_out: np.ndarray  # float32 [L, D, D]
    attention_out_bias: np.ndarray  # float32 [L, D]
    wide_gain: np.ndarray  # float32 [L, D]
    wide_shift: np.ndarray  # float32 [L, D]
    wide_in: np.ndarray  # float32 [L, 4 D, D]
    wide_in_bias: np.ndarray  # float32 [L, 4 D]
    wide_out: np.ndarray  # float32 [L, D, 4 D]
    wide_out_bias: np.ndarray  # float32 [L, D]

    def _newest(self, x: np.ndarray, newest: np.ndarray) -> np.ndarray:
        users, length, d = x.shape
        layers, heads, _ = self.bias.shape
        place, window = np.arange(length), int(self.window)
        asking = place[None]  # [1 or B, q]
        for n in range(layers):
            y = layer_norm(x, self.attention_gain[n], self.attention_shift[n])
            if n == layers - 1:  # nobody will look at the others
                asking, x = newest[:, None], x[np.arange(users), newest][:, None]
            asked = y[np.arange(users), newest][:, None] if n == layers - 1 else y
            q, k, v = (
                (of @ w.T + b).reshape(users, of.shape[1], heads, d // heads).transpose(0, 2, 1, 3)
                for of, w, b in zip(
                    (asked, y, y), np.split(self.attention_in[n], 3), np.split(self.attention_in_bias[n], 3)
                )
            )
            distance = asking[:, :, None] - place  # [1 or B, q, k]
            far = np.where(place == 0, window, np.clip(distance, 0, window - 1))
            bias = np.where(distance < 0, -np.inf, self.bias[n][:, far]).swapaxes(0, 1).astype(np.float32)
            weights = (q / np.float32(np.sqrt(d // heads))) @ k.swapaxes(2, 3)  # logits, made shares in place
            weights += bias
            weights -= weights.max(3, keepdims=True)
            np.exp(weights, out=weights)
            weights /= weights.sum(3, keepdims=True)
            mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(users, -1, d)
            x = x + mixed @ self.attention_out[n].T + self.attention_out_bias[n]
            y = layer_norm(x, self.wide_gain[n], self.wide_shift[n])
            y = gelu(y @ self.wide_in[n].T + self.wide_in_bias[n])
            x = x + y @ self.wide_out[n].T + self.wide_out_bias[n]
        newest_only: np.ndarray = x[:, 0]
        return newest_only


@dataclass(frozen=True, slots=True)
class RecurrentEncoder(SequenceEncoder):
    """GRU4Rec's; gates reset, update, new one below the other, as torch's GRU has them."""

    gates: np.ndarray  # float32 [L, 3 D, D] of what comes in
    gates_bias: np.ndarray  # float32 [L, 3 D]
    memory: np.ndarray  # float32 [L, 3 D, D] of the state
    memory_bias: np.ndarray  # float32 [L, 3 D]

    def _newest(self, x: np.ndarray, newest: np.ndarray) -> np.ndarray:
        for gates, gates_bias, memory, memory_bias in zip(
            self.gates, self.gates_bias, self.memory, self.memory_bias
        ):
            given, states = x @ gates.T + gates_bias, []
            state = np.zeros((len(x), x.shape[2]), np.float32)
            for step in range(x.shape[1]):
                reset, update, new = np.split(given[:, step], 3, axis=1)
                of_reset, of_update, of_new = np.split(state @ memory.T + memory_bias, 3, axis=1)
                keep = sigmoid(update + of_update)
                state = (1 - keep) * np.tanh(new + sigmoid(reset + of_reset) * of_new) + keep * state
                states.append(state)
            x = np.stack(states, axis=1)
        return x[np.arange(len(x)), newest]


def layer_norm(x: np.ndarray, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centered * centered).mean(-1, keepdims=True) + np.float32(EPSILON))
    normed: np.ndarray = centered / scale * gain + shift
    return normed


def gelu(x: np.ndarray) -> np.ndarray:
    """By tanh (Hendrycks and Gimpel 2016), which numpy has fast, where scipy's erf took most of the time."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    found: np.ndarray = x * (1 + np.tanh(inner)) * np.float32(0.5)
    return found


def sigmoid(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = (1 + np.tanh(x * np.float32(0.5))) * np.float32(0.5)
    return found
