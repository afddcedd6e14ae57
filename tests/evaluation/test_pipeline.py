"""The offline report against numbers worked out by hand from the same answers."""

import math

import numpy as np
import pytest

from recsys.evaluation.pipeline import DEPTH, DIVERSIFIED, PIPELINE, RETRIEVAL, UNION, Evaluation, evaluate
from recsys.pipeline.offline import relevant_items, replay
from recsys.types import DAY, Removal, Sources
from tests.world import CATEGORIES, ITEMS, NOW, world

CATEGORY = (np.arange(ITEMS) % CATEGORIES).astype(np.int32)
RULES = (
    *(Removal.CONSUMED, Removal.EXCLUDED, Removal.UNAVAILABLE, Removal.EXPIRED),
    *(Removal.COUNTRY, Removal.AGE, Removal.RULE),
)


def relevant(scene: str) -> dict[str, np.ndarray]:
    of_all = relevant_items(
        world().interactions, start=NOW, end=NOW + 28 * DAY, items=ITEMS, new_only=scene == "discover"
    )
    return dict(list(of_all.items())[:12])


def report(scene: str, seed: int = 0) -> Evaluation:
    return evaluate(
        world().recommender,
        relevant(scene),
        scene=scene,
        now=NOW,
        category=CATEGORY,
        rng=np.random.default_rng(seed),
    )


def rankings_by_hand(scene: str) -> dict[str, dict[str, list[int]]]:
    """Line -> user -> item rows, best first, and "proposed:<source>" -> user -> what it proposed."""
    lines: dict[str, dict[str, list[int]]] = {}
    for answer in replay(world().recommender, list(relevant(scene)), scene=scene, now=NOW, n=DEPTH):
        candidates = answer.candidates
        for r, slate in enumerate(answer.slates):
            user = slate.user_id
            records = [
                {
                    "item": int(candidates.item[c]),
                    "sources": Sources(int(candidates.source[c])),
                    "rank": float(candidates.score[c]),
                    "ruled out": int(candidates.removed_by[c]) in RULES,
                    **{name: float(score[c]) for name, score in candidates.scores.items()},
                }
                for c in range(candidates.offsets[r], candidates.offsets[r + 1])
                if int(candidates.source[c]) != Sources.BACKFILL
            ]

            def best(key, among, records=records):
                return [c["item"] for c in sorted(filter(among, records), key=lambda c: (-c[key], c["item"]))]

            for source in Sources:
                if source != Sources.BACKFILL:
                    name = source.name.lower()
                    own = best(name, lambda c, source=source: source in c["sources"])
                    lines.setdefault(name, {})[user] = own
            lines.setdefault(RETRIEVAL, {})[user] = best("retrieval", lambda c: True)
            lines.setdefault(PIPELINE, {})[user] = best("rank", lambda c: not c["ruled out"])
            lines.setdefault(DIVERSIFIED, {})[user] = [item.item for item in slate.items]
    return lines


def recall(items: list[int], wanted: set[int], k: int) -> float:
    return len(set(items[:k]) & wanted) / len(wanted)


def ndcg(items: list[int], wanted: set[int], k: int) -> float:
    gain = sum(1 / math.log2(place + 2) for place, item in enumerate(items[:k]) if item in wanted)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))


@pytest.mark.parametrize("scene", ["home", "discover"])
def test_every_number_by_hand(scene):
    made, lines = report(scene), rankings_by_hand(scene)
    wanted = {user: set(items.tolist()) for user, items in relevant(scene).items()}
    assert made.users == len(wanted) == 12
    for name, of in lines.items():
        if not any(of.values()):
            assert name not in made.lines  # one's own items, where the scene hides them
            continue
        expected = {
            "recall@20": np.mean([recall(of[u], wanted[u], 20) for u in wanted]),
            "recall@100": np.mean([recall(of[u], wanted[u], 100) for u in wanted]),
            "ndcg@10": np.mean([ndcg(of[u], wanted[u], 10) for u in wanted]),
            "coverage@20": len({item for u in wanted for item in of[u][:20]}) / ITEMS,
            "category_diversity@20": np.mean(
                [len({CATEGORY[i] for i in of[u][:20]}) / len(of[u][:20]) for u in wanted if of[u]]
            ),
        }
        for metric, value in expected.items():
            assert made.lines[name][metric] == pytest.approx(value), (name, metric)
            low, high = made.lines[name][f"{metric}_interval"]
            assert low <= high
        np.testing.assert_allclose(made.ndcg[name], [ndcg(of[u], wanted[u], 10) for u in wanted])
    assert ("history" in made.lines) == (scene == "home")


@pytest.mark.parametrize("scene", ["home", "discover"])
def test_what_each_source_adds_by_hand(scene):
    made, lines = report(scene), rankings_by_hand(scene)
    sources = [
        s.name.lower() for s in Sources if s != Sources.BACKFILL and any(lines[s.name.lower()].values())
    ]
    wanted = {user: set(items.tolist()) for user, items in relevant(scene).items()}

    def union(names: list[str]) -> float:
        found = {u: {item for name in names for item in lines[name][u]} for u in wanted}
        return float(np.mean([len(found[u] & wanted[u]) / len(wanted[u]) for u in wanted]))

    assert made.lines[UNION]["recall"] == pytest.approx(union(sources))
    without = {name: made.lines[f"union without {name}"]["recall"] for name in sources}
    assert without == pytest.approx({name: union([s for s in sources if s != name]) for name in sources})


def test_the_slates_are_those_that_were_served():
    served = {
        slate.user_id: [item.item for item in slate.items]
        for answer in replay(world().recommender, list(relevant("home")), scene="home", now=NOW, n=DEPTH)
        for slate in answer.slates
    }
    assert report("home").slates == served


def test_nobody_to_evaluate_by_is_no_line():
    found = evaluate(
        world().recommender,
        {},
        scene="discover",
        now=NOW,
        category=CATEGORY,
        rng=np.random.default_rng(0),
    )
    assert (found.users, found.lines, found.slates) == (0, {}, {})


def test_the_same_seed_gives_the_same_report():
    first, second = report("home"), report("home")
    assert first.lines == second.lines
    other = report("home", seed=1)
    assert other.lines[PIPELINE]["ndcg@10"] == first.lines[PIPELINE]["ndcg@10"]
    assert other.lines[PIPELINE]["ndcg@10_interval"] != first.lines[PIPELINE]["ndcg@10_interval"]
