"""Replaying the past: nothing that happened from a moment on may be known at that moment."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.text import hash_tokens
from recsys.interactions import Interactions
from recsys.models.ranker import RankingRows
from recsys.models.two_tower.module import TwoTowerSettings
from recsys.pipeline.offline import PointInTimeUsers, batch_of, label_candidates, relevant_items, replay
from recsys.pipeline.wiring import recommender
from recsys.training.ranker import rows_to_keep
from recsys.training.snapshot import TableSettings, fit_snapshot
from recsys.training.two_tower import TwoTowerTraining, train_two_tower
from recsys.types import DAY, Histories, offsets_of
from tests.world import CATEGORIES, EARLIER, ITEMS, NOW, START, item_frame, shards, world

CATEGORY = (np.arange(ITEMS) % CATEGORIES).astype(np.int32)


def changed(log: Interactions, *, since: int, how: str, seed: int = 0) -> Interactions:
    """The same log up to `since`; from then on its events are altered, permuted, shifted, added or gone."""
    draw = np.random.default_rng(seed)
    events = log.histories
    late = events.time >= since
    owner = events.request
    columns = {name: getattr(events, name).copy() for name in Histories.COLUMNS}
    if how == "altered":
        columns["item"][late] = draw.integers(0, ITEMS, late.sum())
        columns["value"][late] *= 99
        columns["quantity"][late] += 7
        columns["order"][late] += 777_777
    elif how == "permuted":  # who bought what, when, is drawn anew among the late events
        shuffled = draw.permutation(np.flatnonzero(late))
        for column in columns.values():
            column[late] = column[shuffled]
    elif how == "shifted":
        columns["time"][late] += draw.integers(0, 90 * DAY, late.sum())
        columns["time"][late] = np.maximum(columns["time"][late] - 30 * DAY, since)
    elif how == "deleted":
        owner = owner[~late]
        columns = {name: column[~late] for name, column in columns.items()}
    elif how == "added":
        new = draw.integers(0, len(events.item), 400)
        owner = np.concatenate([owner, owner[new]])
        columns = {name: np.concatenate([column, column[new]]) for name, column in columns.items()}
        columns["time"][-400:] = since + draw.integers(0, 60 * DAY, 400)
        columns["item"][-400:] = draw.integers(0, ITEMS, 400)
        columns["order"][-400:] = -1 - np.arange(400)
    order = np.lexsort((columns["order"], columns["time"], owner))
    counts = np.bincount(owner, minlength=len(log.user_ids))
    return Interactions(
        log.user_ids,
        Histories(offsets_of(counts), *(columns[name][order] for name in Histories.COLUMNS)),
        log.items,
    )


def training_rows(log: Interactions, relevant: dict[str, np.ndarray], *, scene: str) -> RankingRows:
    """What a ranker learns from, at EARLIER, everything made of `log`: towers, tables, users, features."""
    (tower,) = train_two_tower(
        log,
        tokens=hash_tokens(item_frame()["title"].to_list()),
        category=CATEGORY,
        cutoffs=[EARLIER],
        sizes=[ITEMS],
        settings=TwoTowerTraining(model=TwoTowerSettings(), batch=32, steps=2, steps_more=0),
        seed=3,
    )
    snapshot = fit_snapshot(log, tower=tower, category=CATEGORY, settings=TableSettings())
    parts = replace(world().parts, snapshot=snapshot)
    past = recommender(parts, users=PointInTimeUsers(log, EARLIER), shards=shards(snapshot.vectors))
    blocks = label_candidates(
        past,
        relevant,
        scene=scene,
        now=EARLIER,
        item_features=snapshot.item_features,
        category=CATEGORY,
        keep=lambda offsets, label: rows_to_keep(offsets, label, negatives=50, seed=1),
    )
    return RankingRows.concatenate(list(blocks))


def labels(log: Interactions, *, new_only: bool) -> dict[str, np.ndarray]:
    return relevant_items(log, start=EARLIER, end=NOW, items=ITEMS, new_only=new_only)


@pytest.mark.parametrize("how", ["altered", "permuted", "shifted", "deleted", "added"])
def test_no_training_feature_knows_anything_from_the_labels_moment_on(how):
    log = world().interactions
    other = changed(log, since=EARLIER, how=how)
    fixed = labels(log, new_only=False)
    assert (log.histories.time == EARLIER).any() or (log.histories.time > EARLIER).any()
    if how != "deleted":
        moved = labels(other, new_only=False)
        assert any(fixed[u].tolist() != moved.get(u, np.zeros(0)).tolist() for u in fixed)
    scene = "discover" if how == "altered" else "home"
    rows, again = (training_rows(one, fixed, scene=scene) for one in (log, other))
    np.testing.assert_array_equal(rows.offsets, again.offsets)
    np.testing.assert_array_equal(rows.features, again.features)
    np.testing.assert_array_equal(rows.label, again.label)
    assert rows.label.any()
    assert len(rows) == len(fixed)


def test_the_check_above_would_see_a_leak():
    """An event moved across the border, one second before it, does change features."""
    log = world().interactions
    fixed = labels(log, new_only=False)
    early = changed(log, since=EARLIER - 7 * DAY, how="altered")
    rows, again = (training_rows(one, fixed, scene="home") for one in (log, early))
    assert rows.features.shape != again.features.shape or not np.array_equal(
        rows.features, again.features, equal_nan=True
    )


@settings(deadline=None, max_examples=25)
@given(
    users=st.lists(st.integers(0, 125), min_size=1, max_size=8),
    now=st.one_of(st.integers(START, NOW + 40 * DAY), st.just(None)),
)
def test_users_as_they_were_are_their_events_before_the_moment(users, now):
    log = world().interactions
    if now is None:  # the very second of an event: it is not known yet
        now = int(log.histories.time[len(log.histories.time) // 2])
    ids = [f"u{user:03d}" for user in users]  # 120 and more are not there
    found = PointInTimeUsers(log, now).users(ids)
    for r, user in enumerate(users):
        mine = slice(found.histories.offsets[r], found.histories.offsets[r + 1])
        own = [
            row
            for row in range(len(log.histories.item))
            if user < 120
            and log.histories.offsets[user] <= row < log.histories.offsets[user + 1]
            and log.histories.time[row] < now
        ]
        for column in Histories.COLUMNS:
            np.testing.assert_array_equal(
                getattr(found.histories, column)[mine], getattr(log.histories, column)[own]
            )
        assert found.known[r] == bool(own)
        assert found.birth_year[r] == 0


def test_users_of_an_empty_log():
    empty = Interactions(np.zeros(0, object), Histories.empty(0), ITEMS)
    found = PointInTimeUsers(empty, NOW).users(["a", "b"])
    assert not found.known.any()
    assert found.histories.counts.tolist() == [0, 0]


@pytest.mark.parametrize("new_only", [False, True])
def test_what_is_relevant_by_hand(new_only):
    log = world().interactions
    relevant = relevant_items(log, start=EARLIER, end=NOW, items=100, new_only=new_only)
    events = log.histories
    for code, user in enumerate(log.user_ids):
        rows = range(events.offsets[code], events.offsets[code + 1])
        past = {int(events.item[r]) for r in rows if events.time[r] < EARLIER}
        next_ = {
            int(events.item[r]) for r in rows if EARLIER <= events.time[r] < NOW and events.item[r] < 100
        }
        wanted = next_ - past if new_only else next_
        expected = sorted(wanted) if past and wanted else []
        assert relevant.get(user, np.zeros(0, int)).tolist() == expected


def test_blocks_change_nothing_and_come_in_order(monkeypatch):
    users = [f"u{user:03d}" for user in range(50)] + ["nobody"]
    service = world().recommender

    def slates() -> list[list[int]]:
        answers = replay(service, users, scene="home", now=NOW, n=10)
        found = [slate for answer in answers for slate in answer.slates]
        assert [slate.user_id for slate in found] == users
        return [[item.item for item in slate.items] for slate in found]

    together = slates()
    monkeypatch.setattr("recsys.pipeline.offline.BLOCK", 7)
    assert slates() == together


def test_labels_are_of_candidates_and_the_rules_keep_theirs_out():
    log = world().interactions
    relevant = labels(log, new_only=True)
    rows = training_rows(log, relevant, scene="discover")
    proposable = set(np.flatnonzero(world().recommender.rules._judged.static.all() == 0).tolist())
    most = sum(len(set(items.tolist()) & proposable) for items in relevant.values())
    assert 0 < rows.label.sum() <= most
    assert set(np.unique(rows.label)) == {0.0, 1.0}


def test_an_item_that_was_bought_before_it_was_published():
    """A shop's catalog says since when an item is listed anew, and it was sold before: the models of a
    moment cover fewer items than the events before it name. Co-purchase counting crashed on them."""
    log, known = world().interactions, 100
    assert (log.before(EARLIER).histories.item >= known).any()
    (tower,) = train_two_tower(
        log,
        tokens=hash_tokens(item_frame()["title"].to_list()),
        category=CATEGORY,
        cutoffs=[EARLIER],
        sizes=[known],
        settings=TwoTowerTraining(model=TwoTowerSettings(), batch=32, steps=2, steps_more=0),
        seed=3,
    )
    snapshot = fit_snapshot(log, tower=tower, category=CATEGORY, settings=TableSettings())
    parts = replace(world().parts, items=item_frame()[:known], snapshot=snapshot)
    past = recommender(parts, users=PointInTimeUsers(log, EARLIER), shards=shards(snapshot.vectors))
    for scene in ("home", "discover"):
        for answer in replay(past, log.user_ids[:40].tolist(), scene=scene, now=EARLIER, n=20):
            assert [len(slate.items) for slate in answer.slates] == [20] * 40
            assert answer.candidates.item.max() < known


def test_a_bare_batch():
    batch = batch_of(["a", "b"], scene="home", now=5, n=3)
    assert len(batch) == 2
    assert batch.n.tolist() == [3, 3]
    assert batch.now.tolist() == [5, 5]
