"""The decision tree, at its borders."""

from dataclasses import replace

import pytest

from recsys.advisor.decision import FEW_EVENTS, FEW_ITEMS, MANY_ITEMS, Leaf, decide
from recsys.advisor.profile import Profile
from recsys.interactions import Asked, Timing
from recsys.training.retrieval_models import MODELS

USUAL = Profile(
    users=5000,
    items=2000,
    events=80_000,
    median_history=9,
    density=0.008,
    explicit=0.0,
    timing=Timing.NONE,
    asked=Asked.MISSING,
    described=0.0,
    cold_items=0.1,
    repeats=0.0,
)
LARGE = replace(USUAL, items=MANY_ITEMS + 1)
ORDERED = {"timing": Timing.SEQUENCE, "asked": Asked.NEXT}
LEAVES = [
    (USUAL, Leaf.LINEAR),
    (replace(USUAL, explicit=0.9), Leaf.FACTORIZATION),
    (replace(USUAL, **ORDERED), Leaf.SESSION),
    (replace(USUAL, explicit=0.9, **ORDERED), Leaf.SESSION),
    (replace(USUAL, timing=Timing.CLOCK), Leaf.LINEAR),  # what is asked for lies anywhere
    (replace(USUAL, items=FEW_ITEMS - 1), Leaf.CURATION),
    (replace(USUAL, items=FEW_ITEMS), Leaf.LINEAR),
    (replace(USUAL, events=FEW_EVENTS - 1), Leaf.SPARSE),
    (replace(USUAL, events=FEW_EVENTS - 1, **ORDERED), Leaf.SPARSE),
    (replace(USUAL, events=FEW_EVENTS), Leaf.LINEAR),
    (replace(USUAL, items=MANY_ITEMS), Leaf.LINEAR),
    (LARGE, Leaf.ID_TOWER),
    (replace(LARGE, described=0.9), Leaf.HYBRID_TOWER),
    (replace(LARGE, described=0.3, cold_items=0.21), Leaf.CONTENT_TOWER),
    (replace(LARGE, cold_items=0.21), Leaf.ID_TOWER),  # nothing is known of the cold ones
]


@pytest.mark.parametrize(("found", "leaf"), LEAVES)
def test_each_profile_has_its_leaf_and_the_leaf_its_reasons(found, leaf):
    decision = decide(found)
    assert decision.leaf is leaf
    assert decision.reasons
    assert set(decision.models) <= set(MODELS)
    assert len(set(decision.models)) == len(decision.models) > 0
    assert decision.ranked == (found.items > MANY_ITEMS)


def test_all_leaves_are_reached():
    assert {leaf for _, leaf in LEAVES} == set(Leaf)


def test_few_events_are_helped_by_content():
    few = replace(USUAL, events=FEW_EVENTS - 1)
    assert decide(few).models == ("popularity",)
    assert "logistic" in decide(replace(few, described=0.9)).models


def test_who_needs_the_moment_gets_a_session_model():
    decision = decide(USUAL, real_time=True)
    assert decision.leaf is Leaf.SESSION
    assert decision.refresh == "with each event"
    assert decide(USUAL).refresh == "daily"


def test_what_must_be_fast_is_not_computed_when_it_is_asked_for():
    assert decide(USUAL, latency_ms=50).answers == "online"
    assert decide(USUAL, latency_ms=49).answers == "precomputed"
    assert decide(USUAL, latency_ms=49, real_time=True).answers == "cached"


@pytest.mark.parametrize(("found", "leaf"), LEAVES)
def test_what_is_taken_unseen_answers_as_the_leaf_says(found, leaf):
    """The first model is, where too few questions can be asked; it was popularity for sessions, too."""
    popular = leaf in (Leaf.CURATION, Leaf.SPARSE)
    assert (decide(found).models[0] == "popularity") == popular
