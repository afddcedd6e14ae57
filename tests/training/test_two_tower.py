"""The request path's towers: deterministic, blind to the future, alone and on two ranks."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from recsys.features.text import hash_tokens
from recsys.features.views import USER_FEATURES
from recsys.interactions import Interactions
from recsys.models.two_tower.settings import Negatives, TwoTowerSettings, TwoTowerTraining
from recsys.models.two_tower.user_encoder import UserEncoder, encode_content
from recsys.training.two_tower import train_two_tower
from recsys.types import DAY, Histories, offsets_of

START, ITEMS, GROUPS = 1_300_000_000, 24, 4
SETTINGS = TwoTowerTraining(
    model=TwoTowerSettings(dimensions=16, token_buckets=64),
    negatives=Negatives(in_batch=500, uniform=8),
    batch=32,
    steps=60,
    steps_more=10,
)
CUTOFFS = (START + 60 * DAY, START + 90 * DAY)
TOKENS = hash_tokens([f"thing{item % GROUPS} no{item}" for item in range(ITEMS)], buckets=64)
CATEGORY = (np.arange(ITEMS) % GROUPS).astype(np.int32)


def log(seed: int = 0, users: int = 40) -> Interactions:
    """Users of four groups, each buying the items of its group, three an order."""
    rng = np.random.default_rng(seed)
    orders = rng.integers(2, 6, users)
    day = np.concatenate([np.sort(rng.choice(100, n, False)) for n in orders])
    owner = np.repeat(np.arange(users), orders)
    item = np.concatenate([rng.choice(ITEMS // GROUPS, 3, False) * GROUPS + user % GROUPS for user in owner])
    histories = Histories(
        offsets_of(orders * 3),
        item.astype(np.int32),
        np.repeat(START + day * DAY, 3),
        np.ones(len(item), np.float32),
        np.ones(len(item), np.float32),
        np.repeat(np.arange(len(day)), 3),
    )
    return Interactions(np.arange(users).astype(object), histories, ITEMS)


def train(interactions: Interactions, **changes):
    given = {"cutoffs": CUTOFFS, "sizes": (ITEMS, ITEMS), "settings": SETTINGS, "seed": 1} | changes
    return list(train_two_tower(interactions, tokens=TOKENS, category=CATEGORY, **given))


@pytest.fixture(scope="module")
def snapshots():
    torch.set_num_threads(1)
    return train(log())


def test_users_are_near_the_items_of_their_group(snapshots):
    known = log().before(CUTOFFS[1]).histories
    now = np.full(40, CUTOFFS[1])
    encoder = UserEncoder.from_arrays(snapshots[1].encoder)
    features = np.full((40, len(USER_FEATURES)), np.nan, np.float32)
    scores = encoder.encode(known, now=now, user_features=features) @ snapshots[1].item_vectors.T
    nearest = np.argsort(-scores, axis=1)[:, :4]
    own = nearest % GROUPS == (np.arange(40) % GROUPS)[:, None]
    assert own[known.counts > 0].mean() > 0.9
    assert snapshots[1].loss > 0


def test_snapshots_are_unit_vectors_and_cover_what_was_asked(snapshots):
    assert [snapshot.cutoff for snapshot in snapshots] == list(CUTOFFS)
    np.testing.assert_allclose(np.linalg.norm(snapshots[0].item_vectors, axis=1), 1, atol=1e-5)
    assert train(log(), sizes=(5, ITEMS))[0].item_vectors.shape == (5, 16)


def test_the_same_seed_gives_the_same_vectors_and_progress_is_told(snapshots):
    told = []
    again = train(log(), progress=lambda share, loss: told.append(share))
    for first, second in zip(snapshots, again, strict=True):
        np.testing.assert_array_equal(first.item_vectors, second.item_vectors)
    assert len(told) == 70
    assert told[-1] == 1


def test_it_goes_on_from_a_snapshot_as_if_never_interrupted(snapshots):
    (rest,) = train(log(), start=snapshots[0].resume)
    assert rest.cutoff == CUTOFFS[1]
    np.testing.assert_array_equal(rest.item_vectors, snapshots[1].item_vectors)
    for name, array in rest.encoder.items():
        np.testing.assert_array_equal(array, snapshots[1].encoder[name], err_msg=name)


def test_a_snapshot_has_not_seen_its_future(snapshots):
    every = log()
    late = every.histories.time >= CUTOFFS[0]
    item = every.histories.item.copy()
    item[late] = 0
    altered = Histories(
        every.histories.offsets,
        item,
        *(getattr(every.histories, c) for c in ("time", "quantity", "value", "order")),
    )
    other = train(Interactions(every.user_ids, altered, ITEMS))
    np.testing.assert_array_equal(other[0].item_vectors, snapshots[0].item_vectors)
    assert not np.array_equal(other[1].item_vectors, snapshots[1].item_vectors)


def test_an_item_that_was_not_taken_yet_is_its_content(snapshots):
    every = log()
    early = every.histories.time < CUTOFFS[0]
    later = Interactions(every.user_ids, every.histories.where(~early | (every.histories.item != 7)), ITEMS)
    first, second = train(later)
    alone = encode_content(
        UserEncoder.from_arrays(first.encoder).token, offsets=TOKENS.offsets, tokens=TOKENS.id
    )
    np.testing.assert_allclose(first.item_vectors[7], alone[7], atol=1e-5)
    assert not np.allclose(second.item_vectors[7], alone[7], atol=1e-2)


def test_refusals():
    with pytest.raises(ValueError, match="ascend"):
        train(log(), cutoffs=CUTOFFS[::-1])
    with pytest.raises(ValueError, match="nothing to train on"):
        train(log(), cutoffs=(START - 1, START), sizes=(1, 1))


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    np.save(Path(folder) / f"{rank}.npy", train(log())[1].item_vectors)
    distributed.destroy_process_group()


def test_two_ranks_end_with_the_same_model(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    first, second = (np.load(tmp_path / f"{rank}.npy") for rank in range(2))
    np.testing.assert_array_equal(first, second)
