"""The torch modules and the numpy encoders that serve in their place give the same vectors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.interactions import Queries, Tokens
from recsys.models.sequence.encoder import SequenceEncoder, padded
from recsys.models.sequence.modules import Recurrent, SelfAttention, SequenceModule
from recsys.models.sequence.settings import SequenceSettings
from recsys.types import Histories, offsets_of

ITEMS, UNTAUGHT, DESCRIBED = 20, 19, 18  # UNTAUGHT has no content either
SETTINGS = SequenceSettings(dimensions=16, window=6, token_buckets=50)
KINDS = [SelfAttention, Recurrent]


def module_of(kind: type[SequenceModule], settings: SequenceSettings = SETTINGS) -> SequenceModule:
    """With something to say in every part."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    counts = np.append(rng.integers(1, 4, ITEMS - 1), 0)
    tokens = Tokens(offsets_of(counts), rng.integers(0, 500, counts.sum()).astype(np.int32))
    module = kind(items=ITEMS, tokens=tokens, settings=settings)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def taught() -> np.ndarray:
    return np.arange(ITEMS) < DESCRIBED


def histories_of(lists: list[list[int]]) -> Histories:
    item = np.array([i for one in lists for i in one], np.int32)
    n = len(item)
    return Histories(
        offsets_of(np.array([len(one) for one in lists])),
        item,
        np.arange(n, dtype=np.int64),
        np.ones(n, np.float32),
        np.ones(n, np.float32),
        np.arange(n, dtype=np.int64),
    )


def encode(encoder: SequenceEncoder, lists: list[list[int]]) -> np.ndarray:
    n = len(lists)
    return encoder.encode(Queries(np.full(n, -1), histories_of(lists), np.zeros(n, np.int64)))


@pytest.mark.parametrize("temperature", [None, 0.1])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_and_numpy_agree(kind, layers, temperature):
    module = module_of(
        kind,
        SequenceSettings(dimensions=16, window=6, token_buckets=50, layers=layers, temperature=temperature),
    )
    encoder = module.export(taught())
    lists = [[], [3], [3, 3], list(range(6)), list(range(9)), [DESCRIBED, 1]]
    for one, vector in zip(lists, encode(encoder, lists)):
        event, _ = padded(histories_of([one]), window=6, start=ITEMS, padding=ITEMS + 1)
        with torch.no_grad():
            found = module.encode(torch.from_numpy(np.nan_to_num(encoder.items)), torch.from_numpy(event))
        np.testing.assert_allclose(found[0, -1].numpy(), vector, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_came_before_the_window_does_not_count(kind):
    encoder = module_of(kind).export(taught())
    long = [1, 2, 3, 4, 5, 6, 7, 8]
    np.testing.assert_array_equal(*encode(encoder, [long, long[2:]]))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_items_in_a_history_are_as_if_they_were_not_there(kind):
    encoder = module_of(kind).export(taught())
    assert np.isnan(encoder.items[UNTAUGHT]).all()
    assert not np.isnan(encoder.items[:UNTAUGHT]).any()
    users = encode(encoder, [[2, UNTAUGHT, 5], [2, 5], [UNTAUGHT, 999, -1], []])
    np.testing.assert_allclose(users[0], users[1], atol=1e-6)
    np.testing.assert_allclose(users[2], users[3], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_a_history_counts(kind):
    one, other = encode(module_of(kind).export(taught()), [[1, 2, 3], [3, 2, 1]])
    assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_no_position_sees_what_comes_later(kind):
    module = module_of(kind)
    items = torch.randn(ITEMS, 16)
    event = torch.tensor([[ITEMS, 1, 2, 3], [ITEMS, 1, 2, 7]])
    with torch.no_grad():
        found = module.encode(items, event)
    torch.testing.assert_close(found[0, :3], found[1, :3])
    assert (found[0, 3] - found[1, 3]).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_of_the_share_that_the_served_scores_give_the_target(kind):
    """With items that come again, a target that is in the pool, and two that are asked for together."""
    module = module_of(kind)
    histories = [[3, 5, 3, 7], [5, 5]]
    event, _ = padded(histories_of(histories), window=6, start=ITEMS, padding=ITEMS + 1)
    asked = [(0, 0, 3), (0, 3, 7), (0, 3, 3), (0, 3, 9), (1, 1, 5), (1, 2, 1)]  # row, events before, target
    pool, rows = np.array([2, 5, 9, 11]), np.arange(ITEMS)
    log_expected = np.log([0.3, 0.5, 0.9, 0.1]).astype(np.float32)
    batch = {
        "rows": rows,
        "event": event,
        "target": np.array([target for _, _, target in asked]),
        "place": np.array([row * event.shape[1] + before for row, before, _ in asked]),
        "weight": np.ones(len(asked), np.float32),
        "pool": pool,
        "log_expected": log_expected,
        "own": np.array([-1, -1, -1, 2, 1, -1]),
        **module.content_of(rows),
    }
    with torch.no_grad():
        loss = module(**{name: torch.from_numpy(array) for name, array in batch.items()})
    encoder, expected = module.export(np.ones(ITEMS, bool)), []
    for row, before, target in asked:
        history = histories_of([histories[row][:before]])
        scores = encoder.score(Queries(np.array([-1]), history, np.zeros(1, np.int64)))[0]
        logits = {item: scores[item] - told for item, told in zip(pool, log_expected)}
        logits[target] = scores[target]
        expected.append(np.log(np.sum(np.exp(list(logits.values())))) - scores[target])
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_history_holds_has_a_score_for_being_there(kind):
    encoder = replace(module_of(kind).export(taught()), again=np.array([0.5, 2], np.float32))
    histories = histories_of([[4, 2, 4, 1], [9, 9, 9, 9, 9, 9, 3, 3, 3, 7, 3, 3]])
    queries = Queries(np.full(2, -1), histories, np.zeros(2, np.int64))
    added = encoder.score(queries) - encoder.encode(queries) @ np.nan_to_num(encoder.items).T
    expected = np.zeros_like(added)
    expected[0, [1, 4, 2]], expected[1, [3, 7]] = [0.5, 2, 2], [0.5, 2]  # 9 is beyond the window
    np.testing.assert_allclose(added[:, taught()], expected[:, taught()], atol=1e-5)


def test_padding_keeps_the_newest_events_behind_the_start_token():
    events, counts = padded(histories_of([[], [4, 5], [1, 2, 3, 4]]), window=3, start=8, padding=9)
    np.testing.assert_array_equal(events, [[8, 9, 9, 9], [8, 4, 5, 9], [8, 2, 3, 4]])
    np.testing.assert_array_equal(counts, [0, 2, 3])
