"""What the changelog does to a release: every process that reads it comes to the same state."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from recsys.catalog.changelog import Change, Claim, Position
from recsys.features.text import hash_tokens
from recsys.hashing import shard_of_rows
from recsys.index.building import build_index
from recsys.index.settings import IndexSettings
from recsys.index.vectors import VectorArray
from recsys.models.two_tower.user_encoder import encode_content
from recsys.pipeline.items import DELETED
from recsys.pipeline.new_items import content_vectors, with_vectors
from recsys.pipeline.offline import PointInTimeUsers, batch_of
from recsys.pipeline.trace import Answer
from recsys.pipeline.wiring import recommender
from recsys.releases.live import LiveCatalog, index_today, space_of, watermark
from recsys.releases.manifest import Release, with_parts, write_release
from recsys.releases.parts import INDEX, index_parts, load_parts
from recsys.types import Removal
from tests.world import ITEMS, NOW, SHARDS, USERS, item_frame, release_parts, world

LATER = 4  # items of the catalog that the models have not seen
ROWS = ITEMS + LATER
VECTOR = np.random.default_rng(7).normal(size=world().parts.snapshot.vectors.shape[1]).astype(np.float32)


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Release:
    folder = tmp_path_factory.mktemp("artifacts")
    parts = replace(world().parts, items=item_frame(ROWS))
    return write_release(folder, release_parts(parts, folder / "index"), as_of=NOW, items=ITEMS)


def path(release: Release) -> LiveCatalog:
    return LiveCatalog.of_path(release, load_parts(release), shards=True)


def found(live: LiveCatalog, queries: np.ndarray, k: int = ROWS + 10) -> dict[int, list[float]]:
    """Scores of the queries of each item row that the shards find."""
    scores: dict[int, list[float]] = {}
    for shard in live.shards:
        for query in queries:
            rows, score = shard.shard.search(query[None], k)
            for row, value in zip(rows[0].tolist(), score[0].tolist()):
                if row >= 0:
                    assert str(shard_of_rows(np.array([row]), SHARDS)[0]) == shard.name
                    scores.setdefault(row, []).append(round(value, 3))
    return scores


QUERIES = np.random.default_rng(1).normal(size=(3, len(VECTOR))).astype(np.float32)


def scores_of(vector: np.ndarray) -> list[float]:
    return [round(float(query @ vector), 3) for query in QUERIES]


def changes(space: str) -> list[tuple[int, Change]]:
    claim = Claim("b", ROWS)
    given = [
        Change("given", ROWS, claim, "upsert", {"title": "new mug"}, {space: VECTOR}),
        Change("other", ROWS + 1, claim, "upsert", {"title": "mug number 6"}, {"another space": VECTOR}),
        Change("nameless", ROWS + 2, claim, "upsert", {}),
        Change("i7", 7, None, "delete"),
        Change("i8", 8, None, "upsert", {"title": "lamp number 8"}),
        Change("i9", 9, None, "upsert", {"title": "bag"}, {space: VECTOR}),
        Change("i11", 11, None, "delete"),
        Change("i11", 11, None, "upsert", {"title": "back"}),
        Change("other", ROWS + 1, None, "upsert", {"title": "lamp"}),  # it has a vector by now
        Change("given", ROWS, None, "delete"),
        Change("given", ROWS, None, "upsert", {"title": "new mug"}),
        Change("nameless", ROWS + 2, None, "upsert", {"title": "candle"}),
    ]
    return list(enumerate(given))


def test_items_that_the_models_have_not_seen_are_found_by_their_content(release):
    live = path(release)
    titles = item_frame(ROWS)["title"][ITEMS:].to_list()
    expected = content_vectors(live.token, titles)
    assert expected.any(axis=1).all()
    scores = found(live, QUERIES)
    for row, vector in enumerate(expected, ITEMS):
        assert scores[row] == pytest.approx(scores_of(vector), abs=2e-3)
        np.testing.assert_array_equal(live.items.vectors[np.array([row])][0], vector)
    token = world().parts.snapshot.models.encoder.token
    words = hash_tokens(titles, buckets=len(live.token))
    np.testing.assert_allclose(
        expected, encode_content(token, offsets=words.offsets, tokens=words.id), rtol=1e-6
    )


@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_processes_agree_however_the_changes_come(release, size):
    """The request path with all shards inside, and a replica of each shard."""
    space = space_of(release)
    lives = [path(release), *(LiveCatalog.of_shard(release, number) for number in range(SHARDS))]
    all_changes = changes(space)
    for live in lives:
        for start in range(0, len(all_changes), size):
            live.apply(all_changes[start : start + size])
    whole, apart = found(lives[0], QUERIES), [found(live, QUERIES) for live in lives[1:]]
    assert whole == {row: scores for part in apart for row, scores in part.items()}
    mug = content_vectors(lives[0].token, ["mug number 6"])[0]
    assert whole[ROWS] == pytest.approx(scores_of(VECTOR), abs=2e-3)
    assert whole[ROWS + 1] == pytest.approx(scores_of(mug), abs=2e-3)  # the first title's, in every process
    assert whole[9] == pytest.approx(scores_of(VECTOR), abs=2e-3)
    before = found(path(release), QUERIES)
    assert (whole[8], whole[11]) == (before[8], before[11])
    assert 7 not in whole
    candle = content_vectors(lives[0].token, ["candle"])[0]
    assert whole[ROWS + 2] == pytest.approx(scores_of(candle), abs=2e-3)  # nothing was known of it before
    np.testing.assert_allclose(lives[0].items.vectors[np.array([ROWS + 1])][0], mug, rtol=1e-6)
    assert lives[0].items.line[np.array([7])][0] == DELETED


def test_slates_follow_the_changes(release, monkeypatch):
    monkeypatch.setattr("recsys.pipeline.scopes.OLD_S", 0.0)
    live = path(release)
    parts = load_parts(release)
    service = recommender(
        parts,
        users=PointInTimeUsers(world().interactions, NOW),
        shards=live.shards,
        items=live.items,
    )

    def asked() -> Answer:
        batch = batch_of([f"u{u:03d}" for u in range(USERS)], scene="discover", now=NOW, n=10)
        batch = replace(batch, country=("DE",) * USERS)
        answer = asyncio.run(service.recommend(batch))
        assert all(len(slate.items) == 10 for slate in answer.slates)
        return answer

    def shown() -> list[set[int]]:
        return [{item.item for item in slate.items} for slate in asked().slates]

    before = shown()
    popular = max(range(ITEMS), key=lambda row: sum(row in slate for slate in before))
    live.apply([(0, Change(f"i{popular}", popular, None, "delete"))])
    assert not any(popular in slate for slate in shown())
    live.apply(
        [(1, Change(f"i{popular}", popular, None, "upsert", {"title": "back", "categories": ["mug"]}))]
    )
    assert any(popular in slate for slate in shown())
    near = parts.snapshot.vectors[popular]  # what those want to whom it is shown
    change = Change("new", ROWS, Claim("b", ROWS), "upsert", {"title": "new"}, {live.space: near})
    live.apply([(2, change)])
    candidates = asked().candidates  # whether it is shown is the ranker's to say
    removed_by = candidates.removed_by[candidates.item == ROWS]
    assert len(removed_by)
    assert set(removed_by) <= {Removal.ALIVE, Removal.BELOW_CUT, Removal.DIVERSITY, Removal.BELOW_SLATE}


def test_an_index_that_was_rebuilt_holds_what_the_changelog_brought(release, tmp_path):
    """And the changes from before do no more than say who is alive."""
    old = path(release)
    all_changes = changes(old.space)
    old.apply(all_changes)
    rows = np.arange(ROWS + 3)
    vectors = old.items.vectors[rows]
    build_index(
        VectorArray(vectors), tmp_path, settings=IndexSettings(shards=SHARDS), built_at=len(all_changes)
    )
    rebuilt = with_parts(release, index_parts(tmp_path, of=vectors), instead_of=INDEX)
    assert set(release.manifest.parts.items()) - set(rebuilt.manifest.parts.items())
    new = path(rebuilt)
    assert sum(shard.shard.fresh.alive for shard in new.shards) == 0
    new.apply(all_changes)
    assert sum(shard.shard.fresh.alive for shard in new.shards) == 0
    assert sum(shard.shard.tombstones for shard in new.shards) == 1  # what is deleted may come back
    assert found(new, QUERIES) == found(old, QUERIES)
    np.testing.assert_array_equal(new.items.vectors[rows], old.items.vectors[rows])
    apart = [LiveCatalog.of_shard(rebuilt, number) for number in range(SHARDS)]
    for one in apart:
        one.apply(all_changes)
        assert one.shards[0].shard.fresh.alive == 0
    assert {row: s for one in apart for row, s in found(one, QUERIES).items()} == found(new, QUERIES)
    later = [(len(all_changes), Change("given", ROWS, None, "upsert", {}, {new.space: -VECTOR}))]
    for live in (old, new):
        live.apply(later)
    assert found(new, QUERIES) == found(old, QUERIES)
    assert sum(shard.shard.fresh.alive for shard in new.shards) == 1
    back = [(len(all_changes) + 1, Change("i7", 7, None, "upsert", {"title": "back"}))]
    for live in (old, new):
        live.apply(back)
    assert found(new, QUERIES)[7] == found(old, QUERIES)[7] == scores_of(world().parts.snapshot.vectors[7])


def test_the_watermark_is_the_release_s_or_the_beginning_of_its_log(release):
    ids = item_frame(ROWS)["item_id"].to_list()
    assert watermark(release) == Position.first(ids)
    noted = Position(12, ROWS + 2, "b", "log")
    marked = with_parts(
        release,
        {},
        instead_of="nothing",
        watermark={"catalog": {"offset": 12, "rows": ROWS + 2, "batch": "b", "log": "log"}},
    )
    assert watermark(marked) == noted


def test_a_vector_is_made_once_however_often_an_item_is_written():
    token = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    made = with_vectors(
        [
            (0, Change("a", 0, None, "upsert", {"title": "red mug"})),
            (1, Change("a", 0, None, "upsert", {"title": "blue lamp"})),
            (2, Change("b", 1, None, "upsert", {"title": "red mug"})),
            (3, Change("c", 2, None, "upsert", {"title": "red mug"}, {"s": token[0]})),
            (4, Change("c", 2, None, "upsert", {"title": "red mug"})),
            (5, Change("d", 3, None, "upsert", {"title": None})),
            (6, Change("d", 3, None, "upsert", {"title": "red mug"}, {"s": token[0, :2]})),
            (7, Change("a", 0, None, "delete")),
        ],
        space="s",
        token=token,
        has=lambda row: row == 1,
    )
    assert [offset for offset, _ in made] == list(range(8))
    given = [change.vectors["s"].shape == (4,) if change.vectors else False for _, change in made]
    assert given == [True, False, False, True, False, False, True, False]
    np.testing.assert_array_equal(made[0][1].vectors["s"], content_vectors(token, ["red mug"])[0])
    assert content_vectors(np.zeros((0, 4), np.float32), ["red mug"]).tolist() == [[0] * 4]


def test_inspection_tells_what_a_replica_would_hold(release, redis_url):
    from contextlib import closing

    from recsys.catalog.changelog import encode_change
    from recsys.events.bus import BusSettings, open_bus

    settings = BusSettings(url=redis_url, topic="inspected").of_changelog(watermark(release).log)
    with closing(open_bus(settings)) as log:
        log.append([encode_change(change) for _, change in changes(space_of(release))], partition=0)
        today = index_today(release, log)
    assert (today.changes, today.rows) == (12, ROWS + 3)
    live = path(release)
    live.apply(changes(space_of(release)))
    assert [shard.fresh for shard in today.shards] == [s.shard.fresh.alive for s in live.shards]
    assert [shard.tombstones for shard in today.shards] == [s.shard.tombstones for s in live.shards]
    assert sum(shard.tombstones for shard in today.shards) == 2
