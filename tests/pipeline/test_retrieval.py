"""Merging what the sources propose: against a slow reading of its definition."""

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import UnavailableError
from recsys.models.sparse_scores import Proposals
from recsys.pipeline.offline import batch_of
from recsys.pipeline.retrieval import CANDIDATES, FUSED, Fusion, Retrieval, RetrievalSettings, merge
from recsys.pipeline.seams import Retrieved
from recsys.training.retrieval_models import MODELS
from recsys.types import Sources, offsets_of

NAMES = ("two_tower", "ease", "history", "popularity", "gru4rec")


def retrieved(lists: list[list[int]], opinion: dict[int, float] | None = None, name: str = "x") -> Retrieved:
    """A source that proposes `lists`, best first, and has an opinion of some items."""
    opinion = opinion or {}
    item = np.array([i for items in lists for i in items], np.int32)
    return Retrieved(
        Proposals(offsets_of(np.array([len(i) for i in lists])), item, np.zeros(len(item), np.float32)),
        {name: lambda offsets, item: np.array([opinion.get(int(i), np.nan) for i in item], np.float32)},
    )


def merge_slowly(proposed: dict[str, list[list[int]]], fusion: Fusion) -> list[dict[int, tuple[int, float]]]:
    """Of each request: item -> (source bits, fused score)."""
    requests = len(next(iter(proposed.values())))
    merged: list[dict[int, tuple[int, float]]] = [{} for _ in range(requests)]
    for name, lists in proposed.items():
        for request, items in enumerate(lists):
            for rank, item in enumerate(items, start=1):
                bits, score = merged[request].get(item, (0, 0.0))
                gain = fusion.weights.get(name, 1.0) / (fusion.constant + rank)
                merged[request][item] = (bits | Sources[name.upper()], score + gain)
    return merged


@settings(deadline=None, max_examples=60)
@given(
    lists=st.integers(1, 4).flatmap(
        lambda requests: st.dictionaries(
            st.sampled_from(NAMES),
            st.lists(
                st.lists(st.integers(0, 30), unique=True, max_size=8), min_size=requests, max_size=requests
            ),
            min_size=1,
        )
    ),
    weight=st.sampled_from([0.0, 0.5, 3.0]),
    constant=st.sampled_from([1.0, 60.0]),
)
def test_merging_is_its_definition(lists, weight, constant):
    fusion = Fusion({"ease": weight}, constant)
    requests = len(next(iter(lists.values())))
    candidates = merge(
        {n: retrieved(of, name=n) for n, of in lists.items()}, requests=requests, fusion=fusion
    )
    slow = merge_slowly(lists, fusion)
    assert candidates.counts.tolist() == [len(of) for of in slow]
    for request, of in enumerate(slow):
        mine = slice(candidates.offsets[request], candidates.offsets[request + 1])
        assert candidates.item[mine].tolist() == sorted(of)
        assert candidates.source[mine].tolist() == [of[i][0] for i in sorted(of)]
        np.testing.assert_allclose(candidates.score[mine], [of[i][1] for i in sorted(of)], rtol=1e-6)
    for name, of in lists.items():
        assert candidates.proposed[name].tolist() == [len(items) for items in of]
    np.testing.assert_array_equal(candidates.scores[FUSED], candidates.score)
    assert candidates.alive.all()


def test_every_source_scores_every_candidate_and_what_it_can_not_say_is_nan():
    candidates = merge(
        {
            "ease": retrieved([[3, 1], []], {1: 0.5, 3: 0.9}, "ease"),
            "popularity": retrieved([[1], [2]], {1: 7.0, 2: 4.0, 3: 1.0}, "popularity"),
        },
        requests=2,
        fusion=Fusion(),
    )
    assert candidates.item.tolist() == [1, 3, 2]
    np.testing.assert_array_equal(candidates.scores["ease"], np.array([0.5, 0.9, np.nan], np.float32))
    np.testing.assert_array_equal(candidates.scores["popularity"], np.array([7, 1, 4], np.float32))


def test_nothing_from_anybody():
    for answers in ({}, {"ease": retrieved([[], []], name="ease")}):
        candidates = merge(answers, requests=2, fusion=Fusion())
        assert candidates.counts.tolist() == [0, 0]
        assert len(candidates.scores[FUSED]) == 0


@dataclass(frozen=True)
class Fixed:
    name: str
    lists: list[list[int]]
    seconds: float = 0.0
    error: Exception | None = None

    async def __call__(self, batch):
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        return retrieved(self.lists, name=self.name)


def test_sources_are_asked_at_the_same_time_and_the_late_ones_left_out():
    batch = batch_of(["a"], scene="home", now=0, n=1)
    sources = [
        Fixed("ease", [[1, 2]], seconds=0.05),
        Fixed("history", [[2]], seconds=30),
        Fixed("basket", [[5]], error=UnavailableError("gone")),
        Fixed("popularity", [[2, 3]]),
    ]
    candidates = asyncio.run(Retrieval(sources, deadline_ms=400)(batch))
    assert candidates.item.tolist() == [1, 2, 3]
    assert candidates.degraded == (("history", "basket"),)
    assert set(candidates.proposed) == {"ease", "popularity"}


def test_a_bug_in_a_source_is_not_a_missing_source():
    batch = batch_of(["a"], scene="home", now=0, n=1)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(Retrieval([Fixed("ease", [[1]], error=ZeroDivisionError())])(batch))


def test_far_requests_and_items_do_not_run_into_the_bits_of_their_sources():
    item = 50_000_000
    candidates = merge(
        {"gru4rec": retrieved([[]] * 127 + [[item]]), "two_tower": retrieved([[0]] * 127 + [[item]])},
        requests=128,
        fusion=Fusion(),
    )
    assert candidates.item.tolist() == [0] * 127 + [item]
    assert candidates.source[-1] == Sources.GRU4REC | Sources.TWO_TOWER


def test_every_model_can_be_a_source():
    assert {name.upper() for name in MODELS if name != "auto"} <= set(Sources.__members__)


def test_how_many_each_source_proposes_has_its_default():
    """`candidates: {history: 100}` replaced the whole mapping; building the path then died of KeyError."""
    assert RetrievalSettings(candidates={"history": 100}).candidates == CANDIDATES | {"history": 100}
    with pytest.raises(ValueError, match="candidates of histroy"):
        RetrievalSettings(candidates={"histroy": 5})
    with pytest.raises(ValueError, match="two_towers"):
        RetrievalSettings(weights={"two_towers": 2.0})
