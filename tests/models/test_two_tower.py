"""The torch towers and the numpy encoder that serves in their place give the same vectors."""

import numpy as np
import pytest
import torch

from recsys.models.two_tower import TwoTower, TwoTowerSettings
from recsys.models.user_encoder import UserEncoder, pooling_weights
from recsys.types import DAY, Histories, offsets_of

ITEMS, FEATURES, NOW = 20, 5, 1_300_000_000


@pytest.fixture
def model() -> TwoTower:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, ITEMS)  # some titles have no token
    return TwoTower(
        items=ITEMS,
        tokens_offsets=offsets_of(counts),
        tokens=rng.integers(0, 50, counts.sum()).astype(np.int32),
        feature_mean=np.zeros(FEATURES, np.float32),
        feature_scale=np.array([1, 2, 1, 1, np.inf], np.float32),  # the last one is not used
        settings=TwoTowerSettings(dimensions=16, token_buckets=50),
    )


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


def test_torch_and_numpy_agree(model):
    histories = some_histories([3, 0, 1, 40])
    now = np.full(4, NOW)
    features = np.random.default_rng(1).normal(size=(4, FEATURES)).astype(np.float32) * 100
    features[1] = np.nan
    weights = torch.from_numpy(
        pooling_weights(histories, now=now, half_lives_days=model.settings.half_lives_days)
    )
    with torch.no_grad():
        expected = model.encode_users(
            torch.from_numpy(histories.item).long(),
            torch.from_numpy(histories.request),
            weights,
            model.standardize(torch.from_numpy(features)),
        ).numpy()
    encoder = UserEncoder.from_arrays(model.export(ITEMS))
    found = encoder.encode(histories, now=now, user_features=features)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found.dtype == np.float32


def test_a_vector_does_not_depend_on_batch_mates(model):
    histories = some_histories([3, 0, 5])
    features = np.random.default_rng(1).normal(size=(3, FEATURES)).astype(np.float32)
    encoder = UserEncoder.from_arrays(model.export(ITEMS))
    together = encoder.encode(histories, now=np.full(3, NOW), user_features=features)
    order = np.array([2, 0, 1])
    apart = encoder.encode(histories.take(order), now=np.full(3, NOW), user_features=features[order])
    np.testing.assert_allclose(apart, together[order], atol=1e-6)


def test_items_younger_than_the_encoder_count_nothing(model):
    histories = some_histories([4, 2])
    encoder = UserEncoder.from_arrays(model.export(10))
    old = histories.item < 10
    only_old = Histories(
        offsets_of(np.bincount(histories.request[old], minlength=2)),
        *(getattr(histories, c)[old] for c in Histories.COLUMNS),
    )
    features = np.zeros((2, FEATURES), np.float32)
    np.testing.assert_array_equal(
        encoder.encode(histories, now=np.full(2, NOW), user_features=features),
        encoder.encode(only_old, now=np.full(2, NOW), user_features=features),
    )


def test_new_items_are_encoded_from_words_alone(model):
    with torch.no_grad():
        model.id.weight.zero_()  # then an id adds nothing, and both ways must agree
    encoder = UserEncoder.from_arrays(model.export(ITEMS))
    offsets, tokens = model.tokens_offsets.numpy(), model.tokens.numpy()
    vectors = encoder.encode_new_items(offsets=offsets, tokens=tokens)
    worded = np.diff(offsets) > 0
    np.testing.assert_allclose(vectors[worded], model.item_vectors(ITEMS)[worded], atol=1e-5)
    assert np.isnan(vectors[~worded]).all()


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
    weights = pooling_weights(histories, now=np.array([10**12]), half_lives_days=(10.0,))
    np.testing.assert_allclose(weights, [[1 / 3, 2 / 3]], rtol=1e-5)


def test_loss_falls_when_users_move_towards_their_targets_and_masked_items_are_no_negatives(model):
    histories = some_histories([5, 5])

    def loss(masked):
        return model.loss(
            histories,
            now=np.full(2, NOW),
            user_features=np.zeros((2, FEATURES), np.float32),
            targets_offsets=np.array([0, 1, 2]),
            targets=np.array([1, 2]),
            sampled=np.array([1, 2]),
            masked=masked,
            probability=np.full(ITEMS, 1 / ITEMS),
            generator=torch.Generator().manual_seed(0),
        )

    own = (np.array([0, 1]), np.array([1, 2]))
    everything = (np.array([0, 0, 1, 1]), np.array([1, 2, 1, 2]))
    assert float(loss(own).detach()) > 0
    assert float(loss(everything).detach()) == pytest.approx(0, abs=1e-6)  # no negative is left
    before = float(loss(own).detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        loss(own).backward()
        optimizer.step()
    assert float(loss(own).detach()) < before
