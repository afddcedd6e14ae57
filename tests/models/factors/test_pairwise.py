"""BPR, WARP and logistic: the contract, the compiled step against its formula, content for new items."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.interactions import Tokens, interactions_from_pairs
from recsys.models.factors.pairwise import Bpr, Logistic, Warp
from recsys.models.factors.pairwise_sgd import BPR, Embeddings, Pairs, sgd_epoch
from recsys.models.held_out import spared_slice
from tests.contracts.retrieval_model import (
    ALL,
    GROUPS,
    ITEMS,
    UNTAUGHT,
    RetrievalModelContract,
    log_of,
    pairs,
    queries_of,
)


class TestBpr(RetrievalModelContract):
    model = Bpr(factors=16, epochs=60)
    renaming_noise = 0.05


class TestWarp(RetrievalModelContract):
    model = Warp(factors=16, epochs=60)
    renaming_noise = 0.05


class TestLogistic(RetrievalModelContract):
    model = Logistic(factors=16, epochs=60)
    renaming_noise = 0.05


def bpr_step_slowly(state: Embeddings, u: int, i: int, j: int, *, rate: float, penalty: float) -> None:
    """One step on fresh accumulators, by the gradient of log sigmoid(x_ui - x_uj) (Rendle et al. 2009)."""

    def vector(item: int) -> np.ndarray:
        mine = state.token[state.token_offsets[item] : state.token_offsets[item + 1]]
        return state.items[item] + (state.tokens[mine].mean(0) if len(mine) else 0)

    user, wanted, other = state.users[u].copy(), vector(i), vector(j)
    x = user @ (wanted - other) + state.bias[i] - state.bias[j]
    strength = 1 / (1 + np.exp(x))

    def step(row: np.ndarray, gradient: np.ndarray) -> None:
        gradient = gradient - penalty * row
        row += rate * gradient / np.sqrt(np.mean(gradient**2) + 1e-8)

    step(state.users[u], strength * (wanted - other))
    for item, sign in ((i, 1), (j, -1)):
        step(state.items[item], sign * strength * user)
        for token in state.token[state.token_offsets[item] : state.token_offsets[item + 1]]:
            count = state.token_offsets[item + 1] - state.token_offsets[item]
            step(state.tokens[token], sign * strength * user / count)
        step(state.bias[item : item + 1], np.array([sign * strength]))


def test_a_compiled_step_is_the_formula():
    """Two items, of which the user took one: the negative is known."""
    log = replace(log_of(np.array([3]), np.array([0])), items=2, item_tokens=None)
    both = replace(log_of(np.array([3, 4]), np.array([0, 1])), items=2)
    both = replace(both, item_tokens=Tokens(np.array([0, 1, 2], np.int32), np.array([7, 9], np.int32)))
    state = Embeddings.start(both, factors=8, content=True, seed=0)
    state.users[:] *= 10
    slow = state.copy()
    pair = replace(Pairs.of(log), taught=np.array([0, 1], np.int32))
    sgd_epoch(state, pair, loss=BPR, learning_rate=0.1, regularization=0.02, seed=1)
    bpr_step_slowly(slow, 3, 0, 1, rate=0.1, penalty=0.02)
    for name in ("users", "items", "tokens", "bias"):
        np.testing.assert_allclose(getattr(state, name), getattr(slow, name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [Bpr(factors=16), Warp(factors=16), Logistic(factors=16)])
def test_a_new_item_is_found_by_its_content(model):
    log = log_of(*pairs())
    scores = model.fit(log, seed=1).score(queries_of(log, ALL[1:]))
    new = scores[:, UNTAUGHT]
    same = ALL[1:] % GROUPS == UNTAUGHT % GROUPS
    assert np.isfinite(new).all()
    assert new[same].mean() > new[~same].mean()
    bare = replace(model, content=False).fit(log, seed=1).score(queries_of(log, ALL[1:]))
    assert (bare[:, UNTAUGHT] == -np.inf).all()


def test_a_user_who_took_everything_has_no_negative_and_is_no_error():
    user = np.concatenate((np.full(ITEMS, 1), np.arange(2, 12)))
    log = log_of(user, np.concatenate((np.arange(ITEMS), np.arange(10))))
    assert np.isfinite(Bpr(factors=4, epochs=5).fit(log, seed=1).score(queries_of(log, ALL))).all()


def test_a_small_log_is_learned_whole():
    """An event of each user was held out to choose the epochs: half of what users with two events took, and
    items that were taken once had no score."""
    user, item = np.repeat(np.arange(20), 2), np.arange(40)
    log = replace(log_of(user, item), item_tokens=None)
    for model in (Bpr(factors=4, epochs=5), Warp(factors=4, epochs=5), Logistic(factors=4, epochs=5)):
        assert np.isfinite(model.fit(log, seed=1).score(queries_of(log, ALL))).all()


@pytest.mark.parametrize(("events", "held"), [(2_000, 0), (5_000, 100), (120_000, 2_000)])
def test_the_slice_is_a_small_share_of_the_log(events, held):
    log = interactions_from_pairs(np.arange(events) // 2, np.arange(events) % 7, users=events // 2, items=7)
    rest, judged = spared_slice(log, seed=0)
    assert (len(rest), len(judged)) == (events - held, held)
