"""The stochastic gradient steps of BPR, WARP and logistic factorization, compiled by numba.

Decides the order of the pairs (shuffled anew each epoch), how a negative is drawn and the step sizes
(Adagrad with one accumulator a row). `sgd_epoch` is the loop over pairs; the three losses share the
update of a pair. Knows nothing of validation, histories or exports.
"""

from dataclasses import dataclass, fields
from typing import Any

import numba
import numpy as np

from recsys.interactions import Interactions, Queries, Tokens
from recsys.types import offsets_of

BPR, WARP, LOGISTIC = 0, 1, 2
TRIES = 50  # draws until an item is found that was not taken
WARP_TRIES = 10  # negatives that are looked at until one violates the margin; then the pair is left alone
NEGATIVES = 4  # of each positive in the logistic loss


@dataclass(frozen=True, slots=True)
class Pairs:
    """Events to learn from, and what each user took, for the draw of negatives."""

    user: np.ndarray  # int32 [M]
    item: np.ndarray  # int32 [M]
    weight: np.ndarray  # float32 [M], mean 1
    offsets: np.ndarray  # int64 [U + 1]
    taken: np.ndarray  # int32 [M] items of each user, ascending
    taught: np.ndarray  # int32 items that anybody took

    @classmethod
    def of(cls, data: Interactions) -> "Pairs":
        log = data.histories
        user = log.request
        by_item = np.lexsort((log.item, user))
        weight = data.weights / max(float(data.weights.mean()) if len(data) else 1.0, 1e-12)
        return cls(
            user.astype(np.int32),
            log.item,
            weight.astype(np.float32),
            log.offsets.astype(np.int64),
            log.item[by_item],
            np.unique(log.item),
        )


@dataclass(frozen=True, slots=True)
class Embeddings:
    """All that is learned, and the Adagrad accumulators (mean squared gradients, summed) of each row."""

    users: np.ndarray  # float32 [U, d]
    items: np.ndarray  # float32 [V, d]
    tokens: np.ndarray  # float32 [T, d]
    bias: np.ndarray  # float32 [V]
    of_users: np.ndarray  # float32 [U]
    of_items: np.ndarray  # float32 [V]
    of_tokens: np.ndarray  # float32 [T]
    of_bias: np.ndarray  # float32 [V]
    token_offsets: np.ndarray  # int64 [V + 1]
    token: np.ndarray  # int32, rows of `tokens` of each item
    known: np.ndarray  # bool [V] somebody took it, or it has a token of such an item

    @classmethod
    def start(cls, data: Interactions, *, factors: int, content: bool, seed: int) -> "Embeddings":
        """Small random vectors; tokens that no taken item has teach nothing and are left out."""
        taught = np.zeros(data.items, bool)
        taught[data.histories.item] = True
        found = data.item_tokens if content and data.item_tokens is not None else None
        offsets, token = _shared_tokens(found, taught)
        rng = np.random.default_rng(seed)

        def some(rows: int) -> np.ndarray:
            return (rng.normal(size=(rows, factors)) * 0.1 / np.sqrt(factors)).astype(np.float32)

        items, tokens = some(data.items), some(int(token.max(initial=-1)) + 1)
        items[~taught] = 0
        return cls(
            users=some(data.users),
            items=items,
            tokens=tokens,
            bias=np.zeros(data.items, np.float32),
            of_users=np.zeros(data.users, np.float32),
            of_items=np.zeros(data.items, np.float32),
            of_tokens=np.zeros(len(tokens), np.float32),
            of_bias=np.zeros(data.items, np.float32),
            token_offsets=offsets,
            token=token,
            known=taught | (np.diff(offsets) > 0),
        )

    def copy(self) -> "Embeddings":
        return Embeddings(*(getattr(self, f.name).copy() for f in fields(self)))

    def score(self, queries: Queries) -> np.ndarray:
        """Of users that are learned, float32 [B, V]; -inf where nothing is known of the item."""
        vectors = self.item_vectors()
        scores = self.users[queries.user] @ vectors[:, :-1].T + vectors[:, -1]
        scores[:, ~self.known] = -np.inf
        return scores

    def item_vectors(self) -> np.ndarray:
        """Sum of id and mean token, and the bias last, float32 [V, d + 1]; NaN where nothing is known."""
        counts = np.diff(self.token_offsets)
        owner = np.repeat(np.arange(len(counts)), counts)
        vectors = self.items.copy()
        np.add.at(vectors, owner, self.tokens[self.token] / counts[owner][:, None].astype(np.float32))
        vectors[~self.known] = np.nan
        return np.concatenate((vectors, self.bias[:, None]), axis=1)

    def user_vectors(self, pairs: Pairs) -> np.ndarray:
        """With a 1 for the bias last, float32 [U, d + 1]; NaN for who had no event."""
        vectors = np.concatenate((self.users, np.ones((len(self.users), 1), np.float32)), axis=1)
        vectors[np.diff(pairs.offsets) == 0] = np.nan
        return vectors


def _shared_tokens(tokens: Tokens | None, taught: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of each item as rows 0, 1, ... of those that some taught item has."""
    if tokens is None:
        return np.zeros(len(taught) + 1, np.int64), np.zeros(0, np.int32)
    owner = np.repeat(np.arange(len(tokens)), np.diff(tokens.offsets))
    known = np.unique(tokens.id[taught[owner]])
    kept = np.isin(tokens.id, known)
    offsets = offsets_of(np.bincount(owner[kept], minlength=len(tokens))).astype(np.int64)
    return offsets, np.searchsorted(known, tokens.id[kept]).astype(np.int32)


def sgd_epoch(
    state: Embeddings, pairs: Pairs, *, loss: int, learning_rate: float, regularization: float, seed: int
) -> None:
    """One pass over all pairs in random order; changes `state` in place."""
    arrays: Any = tuple(getattr(state, f.name) for f in fields(state))
    _epoch(
        loss,
        (pairs.user, pairs.item, pairs.weight, pairs.offsets, pairs.taken, pairs.taught),
        arrays,
        np.float32(learning_rate),
        np.float32(regularization),
        seed % (1 << 31),
    )


@numba.njit(cache=True, fastmath=True, error_model="numpy")  # what diverges is told when it scores
def _epoch(loss, pairs, state, rate, penalty, seed):  # type: ignore[no-untyped-def]
    user, item, weight, offsets, taken, taught = pairs
    users, bias = state[0], state[3]
    np.random.seed(seed)
    order = np.random.permutation(len(user))
    d = users.shape[1]
    wanted, other = np.empty(d, np.float32), np.empty(d, np.float32)
    for step in order:
        u, i, w = user[step], item[step], weight[step]
        mine = taken[offsets[u] : offsets[u + 1]]
        _represent(state, i, wanted)
        score = _dot(users[u], wanted) + bias[i]
        if loss == LOGISTIC:
            _pull(state, u, i, wanted, w / (1 + np.exp(score)), rate, penalty)
            for _ in range(NEGATIVES):
                j = _not_taken(mine, taught)
                if j >= 0:
                    _represent(state, j, other)
                    wrong = 1 / (1 + np.exp(-_dot(users[u], other) - bias[j]))
                    _pull(state, u, j, other, -w * wrong, rate, penalty)
        elif loss == BPR:
            j = _not_taken(mine, taught)
            if j >= 0:
                _represent(state, j, other)
                difference = score - _dot(users[u], other) - bias[j]
                _pull_apart(state, u, i, j, wanted, other, w / (1 + np.exp(difference)), rate, penalty)
        else:
            for draws in range(1, WARP_TRIES + 1):
                j = _not_taken(mine, taught)
                if j < 0:
                    break
                _represent(state, j, other)
                if _dot(users[u], other) + bias[j] > score - 1:
                    rank = max(1, (len(taught) - 1) // draws)
                    _pull_apart(state, u, i, j, wanted, other, w * np.log(1 + rank) / 5, rate, penalty)
                    break


@numba.njit(cache=True)
def _not_taken(mine, taught):  # type: ignore[no-untyped-def]
    """A random taught item that is not in `mine` (ascending); -1 if none was found."""
    for _ in range(TRIES):
        j = taught[np.random.randint(len(taught))]
        place = np.searchsorted(mine, j)
        if place == len(mine) or mine[place] != j:
            return j
    return -1


@numba.njit(cache=True, fastmath=True)
def _represent(state, item, into):  # type: ignore[no-untyped-def]
    """The item's vector: id and mean of tokens."""
    items, tokens, offsets, token = state[1], state[2], state[8], state[9]
    into[:] = items[item]
    start, end = offsets[item], offsets[item + 1]
    for place in range(start, end):
        row = tokens[token[place]]
        for k in range(len(into)):
            into[k] += row[k] / (end - start)


@numba.njit(cache=True, fastmath=True)
def _dot(one, other):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for k in range(len(one)):
        total += one[k] * other[k]
    return total


@numba.njit(cache=True, fastmath=True)
def _pull_apart(state, u, i, j, wanted, other, strength, rate, penalty):  # type: ignore[no-untyped-def]
    """Item i nearer to the user, item j farther, the user along their difference."""
    user = state[0][u].copy()
    for k in range(len(wanted)):
        wanted[k] -= other[k]
    _step(state[0], state[4], u, wanted, strength, rate, penalty)
    _step_item(state, i, user, strength, rate, penalty)
    _step_item(state, j, user, -strength, rate, penalty)


@numba.njit(cache=True, fastmath=True)
def _pull(state, u, i, vector, strength, rate, penalty):  # type: ignore[no-untyped-def]
    user = state[0][u].copy()
    _step(state[0], state[4], u, vector, strength, rate, penalty)
    _step_item(state, i, user, strength, rate, penalty)


@numba.njit(cache=True, fastmath=True)
def _step_item(state, i, user, strength, rate, penalty):  # type: ignore[no-untyped-def]
    _step(state[1], state[5], i, user, strength, rate, penalty)
    start, end = state[8][i], state[8][i + 1]
    for place in range(start, end):
        _step(state[2], state[6], state[9][place], user, strength / (end - start), rate, penalty)
    bias, sums = state[3], state[7]
    gradient = strength - penalty * bias[i]
    sums[i] += gradient * gradient
    bias[i] += rate * gradient / np.sqrt(sums[i] + np.float32(1e-8))


@numba.njit(cache=True, fastmath=True)
def _step(table, sums, row, direction, strength, rate, penalty):  # type: ignore[no-untyped-def]
    """One ascent of `strength * direction`, shrunk by `penalty`; Adagrad by the row's mean square."""
    vector = table[row]
    square = np.float32(0)
    for k in range(len(vector)):
        gradient = strength * direction[k] - penalty * vector[k]
        square += gradient * gradient
    sums[row] += square / len(vector)
    size = rate / np.sqrt(sums[row] + np.float32(1e-8))
    for k in range(len(vector)):
        vector[k] += size * (strength * direction[k] - penalty * vector[k])
