"""The torch towers and the numpy encoder that serves in their place give the same vectors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.interactions import Tokens
from recsys.models.two_tower.module import TwoTower, TwoTowerSettings
from recsys.models.two_tower.user_encoder import (
    UserEncoder,
    clock,
    encode_content,
    places,
    pooling_weights,
    standardize,
)
from recsys.types import DAY, Histories, offsets_of

ITEMS, FEATURES, NOW = 20, 5, 1_300_000_000
SETTINGS = TwoTowerSettings(dimensions=16, token_buckets=50, places=3, context=True)


def tower(settings: TwoTowerSettings = SETTINGS) -> TwoTower:
    """With content, and nothing at its start: every part has something to say."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, ITEMS)  # some items have no token
    model = TwoTower(
        items=ITEMS,
        tokens=Tokens(offsets_of(counts), rng.integers(0, 500, counts.sum()).astype(np.int32)),
        feature_mean=np.zeros(FEATURES, np.float32),
        feature_scale=np.array([1, 2, 1, 1, np.inf], np.float32),  # the last one is not used
        settings=settings,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture
def model() -> TwoTower:
    return tower()


def some_histories(counts: list[int], seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    events = sum(counts)
    time = np.concatenate([np.sort(rng.integers(1, 400 * DAY, n)) for n in counts] or [np.zeros(0, int)])
    return Histories(
        offsets_of(np.array(counts)),
        rng.integers(0, ITEMS, events).astype(np.int32),
        (NOW - 400 * DAY + time).astype(np.int64),
        np.ones(events, np.float32),
        np.ones(events, np.float32),
        np.arange(events, dtype=np.int64),
    )


def user_batch(
    model: TwoTower, histories: Histories, now: np.ndarray, features: np.ndarray
) -> dict[str, torch.Tensor]:
    """The user's half of a batch; its rows are all items."""
    hour, weekday = clock(now)
    found = {
        "event": histories.item.astype(np.int64),
        "event_owner": histories.request,
        "event_offsets": histories.offsets[:-1].astype(np.int64),
        "place": places(histories),
        "weights": pooling_weights(histories, now=now, half_lives_days=model.settings.half_lives_days),
        "features": standardize(features, mean=model.feature_mean, scale=model.feature_scale),
        "hour": hour,
        "weekday": weekday,
    }
    return {name: torch.from_numpy(array) for name, array in found.items()}


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, attention=False),
        replace(SETTINGS, places=0, context=False),
        replace(SETTINGS, half_lives_days=(float("inf"),)),
        replace(SETTINGS, half_lives_days=()),
    ],
    ids=["all", "no attention", "sets", "mean", "attention alone"],
)
def test_torch_and_numpy_agree(settings):
    model = tower(settings)
    histories = some_histories([3, 0, 1, 40])
    now = NOW + np.array([0, 5000, 100_000, 900_000])
    features = np.random.default_rng(1).normal(size=(4, FEATURES)).astype(np.float32) * 100
    features[1] = np.nan
    with torch.no_grad():
        items = torch.from_numpy(model.raw_items(ITEMS))
        expected = model.encode_users(items, user_batch(model, histories, now, features)).numpy()
    encoder = UserEncoder.from_arrays(model.export(ITEMS).arrays())
    found = encoder.encode(histories, now=now, user_features=features)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found.dtype == np.float32


def test_attention_is_a_softmax_over_each_history(model):
    """By its definition, event by event."""
    histories = some_histories([4, 0, 2])
    encoder = model.export(ITEMS)
    expected = []
    for user in range(3):
        events = range(histories.offsets[user], histories.offsets[user + 1])
        vectors = [encoder.history[histories.item[e]] for e in events]
        if not vectors:
            continue
        query = encoder.query + vectors[-1] @ encoder.query_newest
        age = [len(vectors) - 1 - n for n in range(len(vectors))]
        strength = np.exp([v @ query + encoder.place[min(a, 2)] for v, a in zip(vectors, age)])
        expected += list(strength / strength.sum())
    np.testing.assert_allclose(encoder._attention(histories), expected, rtol=1e-4)


def test_a_vector_does_not_depend_on_batch_mates(model):
    histories = some_histories([3, 0, 5])
    features = np.random.default_rng(1).normal(size=(3, FEATURES)).astype(np.float32)
    encoder = model.export(ITEMS)
    together = encoder.encode(histories, now=np.full(3, NOW), user_features=features)
    order = np.array([2, 0, 1])
    apart = encoder.encode(histories.take(order), now=np.full(3, NOW), user_features=features[order])
    np.testing.assert_allclose(apart, together[order], atol=1e-6)


def test_items_younger_than_the_encoder_count_nothing(model):
    histories = some_histories([4, 2])
    encoder = model.export(10)
    only_old = histories.where(histories.item < 10)
    features = np.zeros((2, FEATURES), np.float32)
    np.testing.assert_array_equal(
        encoder.encode(histories, now=np.full(2, NOW), user_features=features),
        encoder.encode(only_old, now=np.full(2, NOW), user_features=features),
    )


def test_items_that_nothing_taught_are_encoded_from_content_alone(model):
    taught = np.arange(ITEMS) % 2 == 0
    encoder = model.export(ITEMS, taught)
    offsets, tokens = model.tokens.offsets, model.tokens.id
    vectors = encode_content(encoder.token, offsets=offsets, tokens=tokens)
    worded = np.diff(offsets) > 0
    found = model.item_vectors(ITEMS, taught)
    np.testing.assert_allclose(found[worded & ~taught], vectors[worded & ~taught], atol=1e-5)
    np.testing.assert_array_equal(found[taught], model.item_vectors(ITEMS)[taught])
    assert np.isnan(vectors[~worded]).all()
    assert (found[~worded & ~taught] == 0).all()
    assert (encoder.history[~worded & ~taught] == 0).all()


def test_pooling_weights_halve_with_age_and_survive_a_long_absence():
    ages = np.array([80_000.0, 79_990.0])  # days: 2 ** -5714 underflows, the relative ages do not
    histories = Histories(
        np.array([0, 2], np.int32),
        np.zeros(2, np.int32),
        (10**12 - ages * DAY).astype(np.int64),
        np.ones(2, np.float32),
        np.ones(2, np.float32),
        np.arange(2, dtype=np.int64),
    )
    weights = pooling_weights(histories, now=np.array([10**12]), half_lives_days=(10.0, float("inf")))
    np.testing.assert_allclose(weights, [[1 / 3, 2 / 3], [1 / 2, 1 / 2]], rtol=1e-5)


def test_places_and_the_clock():
    assert places(some_histories([3, 0, 2])).tolist() == [2, 1, 0, 1, 0]
    hour, weekday = clock(np.array([0, 3600 * 25 + 59]))  # 1970-01-01 was a Thursday
    assert hour.tolist() == [0, 1]
    assert weekday.tolist() == [0, 1]


LOG_SHARE = np.log(np.linspace(0.01, 0.4, ITEMS)).astype(np.float32)


def loss_of(model: TwoTower, *, masked: list[tuple[int, int]], log_expected: float = 0.0) -> torch.Tensor:
    """Two users, who want item 1 and item 2; the pool is items 1, 2 and 3."""
    histories = some_histories([5, 5])
    offsets, tokens = model.content_of(np.arange(ITEMS))
    batch = {
        "rows": np.arange(ITEMS),
        "tokens": tokens,
        "token_offsets": offsets,
        "keep_id": np.ones(ITEMS, np.float32),
        "target": np.array([1, 2]),
        "owner": np.array([0, 1]),
        "target_weight": np.ones(2, np.float32),
        "pool": np.array([1, 2, 3]),
        "log_expected": np.full(3, log_expected, np.float32),
        "log_share": LOG_SHARE,
        "masked": np.array([request * 3 + item - 1 for request, item in masked], np.int64),
    }
    users = user_batch(model, histories, np.full(2, NOW), np.zeros((2, FEATURES), np.float32))
    return model(**users, **{name: torch.from_numpy(array) for name, array in batch.items()})


OWN, EVERYTHING = [(0, 1), (1, 2)], [(r, i) for r in range(2) for i in (1, 2, 3)]


@pytest.mark.parametrize("popularity", [0.0, 0.3])
def test_the_softmax_is_its_definition(popularity):
    """-log of the positive's share, the negatives over how often each was to be expected; popularity is
    left to the scores."""
    model = tower(replace(SETTINGS, popularity=popularity))
    histories = some_histories([5, 5])
    users = model.export(ITEMS).encode(
        histories, now=np.full(2, NOW), user_features=np.zeros((2, FEATURES), np.float32)
    )
    logits = users @ model.item_vectors(ITEMS).T / 0.1 - popularity * LOG_SHARE
    expected = []
    for user, (target, others) in enumerate([(1, (2, 3)), (2, (1, 3))]):
        negatives = sum(np.exp(logits[user, i]) / 0.25 for i in others)
        expected.append(-np.log(np.exp(logits[user, target]) / (np.exp(logits[user, target]) + negatives)))
    loss = loss_of(model, masked=OWN, log_expected=float(np.log(0.25)))
    assert float(loss.detach()) == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_cosine_contrastive_loss_is_its_definition():
    model = tower(replace(SETTINGS, loss="ccl", margin=0.1, negative_weight=7.0))
    histories = some_histories([5, 5])
    users = model.export(ITEMS).encode(
        histories, now=np.full(2, NOW), user_features=np.zeros((2, FEATURES), np.float32)
    )
    cosine = users @ model.item_vectors(ITEMS).T
    expected = [
        1 - cosine[user, target] + 7.0 * sum(max(0, cosine[user, i] - 0.1) for i in others) / 3
        for user, (target, others) in enumerate([(1, (2, 3)), (2, (1, 3))])
    ]
    assert float(loss_of(model, masked=OWN).detach()) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("loss", ["softmax", "ccl"])
def test_masked_items_are_no_negatives_and_the_loss_falls(loss):
    model = tower(replace(SETTINGS, loss=loss, margin=0.0))
    if loss == "softmax":
        assert float(loss_of(model, masked=EVERYTHING).detach()) == pytest.approx(0, abs=1e-6)
    before = float(loss_of(model, masked=OWN).detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        loss_of(model, masked=OWN).backward()
        optimizer.step()
    assert float(loss_of(model, masked=OWN).detach()) < before
