"""From a profile to a slate: a model of each leaf, fitted, released, opened again and asked."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys.advisor.decision import Leaf, decide
from recsys.advisor.profile import profile
from recsys.experiments.assignment import Experiments
from recsys.interactions import Interactions, Queries, Timing, Tokens, interactions_from_pairs
from recsys.models.blend import FittedBlend, as_blend
from recsys.pipeline.diversity import DiversitySettings
from recsys.pipeline.offline import PointInTimeUsers, batch_of
from recsys.pipeline.wiring import Parts, PipelineSettings, recommender
from recsys.releases.manifest import open_release, write_release
from recsys.releases.parts import load_parts, local_shards
from recsys.settings import model_of
from recsys.training.snapshot import TableSettings, single_stage
from recsys.types import DAY, Histories, Slate, Sources
from tests.world import item_frame, release_parts

USERS, NOW, N = 60, 1_400_000_000 // DAY * DAY, 12
ASKED = (*(str(user) for user in range(20)), "nobody")


def log(items: int, events: int, *, timing: Timing, rated: bool = False, told: bool = False) -> Interactions:
    """Users with a taste each, who mostly take what is of its kind; the last item is never taken."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, USERS, events)
    item = (
        np.minimum(rng.zipf(1.3, events), items // 4) * 4
        - 4
        + np.where(rng.random(events) < 0.8, user % 4, rng.integers(0, 4, events))
    )
    made = interactions_from_pairs(
        user,
        np.minimum(item, items - 2),
        users=USERS,
        items=items,
        time=NOW - 1 - rng.integers(0, 90 * DAY, events) if timing is Timing.CLOCK else None,
        value=rng.integers(1, 6, events) if rated else None,
        timing=timing,
    )
    kinds = Tokens(np.arange(items + 1, dtype=np.int32), (np.arange(items) % 4).astype(np.int32))
    # Ids sorted as texts, as those of a log are.
    order = np.argsort(made.user_ids.astype(str), kind="stable")
    sets = {"user_ids": made.user_ids[order], "histories": made.histories.take(order)}
    return replace(made, **sets, item_tokens=kinds if told else None)


# leaf -> (data, a model of the leaf, small)
LEAVES: dict[Leaf, tuple[Callable[[], Interactions], str]] = {
    Leaf.CURATION: (lambda: log(30, 300, timing=Timing.CLOCK), "popularity"),
    Leaf.SPARSE: (lambda: log(150, 600, timing=Timing.CLOCK, told=True), "logistic factors=8 epochs=3"),
    Leaf.SESSION: (
        lambda: log(120, 2000, timing=Timing.CLOCK),
        "sasrec dimensions=16 window=10 layers=1 passes=2",
    ),
    Leaf.FACTORIZATION: (lambda: log(120, 2000, timing=Timing.NONE, rated=True), "ials factors=8 epochs=3"),
    Leaf.LINEAR: (lambda: log(120, 2000, timing=Timing.NONE), "normalized_ease"),
    Leaf.ID_TOWER: (lambda: log(100_001, 3000, timing=Timing.CLOCK), "covisitation"),
}


def released(models: FittedBlend, data: Interactions, folder: Path) -> tuple[Parts, Callable]:
    """(the parts as they are read from a release's files, user ids and scene -> slates)"""
    category = np.full(data.items, -1, np.int32)
    snapshot = single_stage(models, data, as_of=NOW, category=category, settings=TableSettings(), seed=0)
    settings = PipelineSettings(diversity=DiversitySettings(relevance_weight=1.0, distinct_top=0))
    made = Parts(item_frame(data.items), snapshot, {}, (), Experiments({}), settings)
    written = release_parts(made, folder / "index")
    release = open_release(write_release(folder, written, as_of=NOW, items=data.items).uri)
    parts = load_parts(release)
    path = recommender(parts, users=PointInTimeUsers(data, NOW), shards=local_shards(release))

    def slates(users: tuple[str, ...], scene: str):
        return asyncio.run(path.recommend(batch_of(users, scene=scene, now=NOW, n=N))).slates

    return parts, slates


def ranked(slate: Slate) -> list[int]:
    return [entry.item for entry in slate.items if entry.sources != Sources.BACKFILL]


def own_rankings(models: FittedBlend, data: Interactions, *, hidden: bool) -> list[list[int]]:
    """The model's lists for strangers with the histories of ASKED, less what anybody may not see."""
    known = [int(np.flatnonzero(data.user_ids == user)[0]) for user in ASKED[:-1]]
    histories = Histories.concatenate([data.histories.take(np.array(known)), Histories.empty(1)])
    scores = models.score(Queries(np.full(len(ASKED), -1), histories, np.full(len(ASKED), NOW)))
    if hidden:
        scores[histories.request, histories.item] = -np.inf
    row = np.arange(data.items)
    allowed = (row % 15 > 0) & (row % 10 > 0) & (row % 13 > 0)
    orders = (np.lexsort((row, -own)) for own in scores)
    shown = (allowed & (own > -np.inf) for own in scores)
    return [order[mine[order]][:N].tolist() for order, mine in zip(orders, shown)]


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_model_of_the_leaf_is_served_in_its_own_order(leaf, tmp_path):
    make, text = LEAVES[leaf]
    data, name = make(), text.split()[0]
    decision = decide(profile(data))
    assert decision.leaf is leaf
    assert name in decision.models
    models = as_blend(name, model_of(text).fit(data, seed=1))
    parts, slates = released(models, data, tmp_path)
    assert isinstance(parts.snapshot.models, FittedBlend)
    bit = Sources[name.upper()]
    for scene, hidden in (("home", False), ("discover", True)):
        for expected, slate in zip(
            own_rankings(models, data, hidden=hidden), slates(ASKED, scene), strict=True
        ):
            assert slate.degraded == (("unknown_user",) if slate.user_id == "nobody" else ())
            assert ranked(slate) == expected, (scene, slate.user_id)
            assert {entry.sources for entry in slate.items} <= {bit, Sources.BACKFILL}
    norms = np.linalg.norm(parts.snapshot.vectors, axis=1)
    taken = np.unique(data.histories.item)
    np.testing.assert_allclose(norms[taken], 1, atol=1e-5)
    assert norms[-1] == 0


def test_a_blend_is_served_in_its_own_order(tmp_path):
    data = log(120, 2000, timing=Timing.NONE)
    parts = {name: model_of(name).fit(data, seed=1) for name in ("normalized_ease", "covisitation")}
    models = FittedBlend(parts, np.array([0.7, 0.3], np.float32), 10.0)
    _, slates = released(models, data, tmp_path)
    found = slates(ASKED, "home")
    for slate in found:
        scores = [entry.score for entry in slate.items if entry.sources != Sources.BACKFILL]
        assert scores == sorted(scores, reverse=True)
        assert 1 / (61 + data.items) <= scores[-1] < scores[0] <= np.float32(1 / 61)
    assert [ranked(slate) for slate in found] == own_rankings(models, data, hidden=False)
    both = {source for slate in found for entry in slate.items for source in entry.sources}
    assert both >= {Sources.NORMALIZED_EASE, Sources.COVISITATION}


def test_what_auto_leaves_is_served_without_how_it_was_chosen(tmp_path):
    data = log(120, 2000, timing=Timing.CLOCK)
    models = as_blend("auto", model_of("auto models=[popularity,ease] most=1").fit(data, seed=1))
    assert type(models) is FittedBlend
    assert set(models.parts) <= {"popularity", "ease"}
    _, slates = released(models, data, tmp_path)
    found = [ranked(slate) for slate in slates(ASKED, "home")]
    assert found == own_rankings(models, data, hidden=False)
