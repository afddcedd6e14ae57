"""Reciprocal rank fusion of fitted models."""

import numpy as np
import pytest

from recsys.errors import ReleaseError
from recsys.interactions import Timing
from recsys.models.blend import FittedBlend, fitted_class, rank_scores
from recsys.models.item_to_item.covisitation import Covisitation
from recsys.models.item_to_item.table import ItemTable
from recsys.models.popularity import Popularity
from recsys.types import Histories
from tests.contracts.retrieval_model import ALL, ITEMS, UNTAUGHT, log_of, pairs, queries_of


@pytest.fixture(scope="module")
def blend() -> FittedBlend:
    log = log_of(*pairs(), Timing.SEQUENCE)
    parts = {"popularity": Popularity().fit(log, seed=0), "covisitation": Covisitation().fit(log, seed=0)}
    return FittedBlend(parts, np.array([0.25, 0.75], np.float32), 10.0)


def test_scores_are_weighted_sums_of_reciprocal_ranks(blend):
    queries = queries_of(log_of(*pairs(), Timing.SEQUENCE), ALL)
    expected = np.zeros((len(ALL), ITEMS))
    for part, weight in zip(blend.parts.values(), blend.weights):
        scores = part.score(queries)
        for row in range(len(ALL)):
            order = np.lexsort((np.arange(ITEMS), -scores[row]))
            order = order[scores[row, order] > -np.inf]
            expected[row, order] += weight / (10 + 1 + np.arange(len(order)))
    found = blend.score(queries)
    np.testing.assert_allclose(np.where(found == -np.inf, 0, found), expected, rtol=1e-5)
    assert (found[:, UNTAUGHT] == -np.inf).all()


def test_what_is_far_down_or_has_no_score_has_no_rank():
    scores = np.arange(1200, dtype=np.float32)[None].copy()
    scores[0, 1199] = -np.inf
    found = rank_scores(scores, constant=0.0)
    assert found[0, 1198] == 1.0
    assert (found > 0).sum() == 500
    assert found[0, 1199] == 0


def test_a_single_part_gives_its_own_scores(blend):
    queries = queries_of(log_of(*pairs(), Timing.SEQUENCE), ALL)
    part = blend.parts["covisitation"]
    alone = FittedBlend({"covisitation": part}, np.ones(1, np.float32), 10.0)
    np.testing.assert_array_equal(alone.score(queries), part.score(queries))


def test_it_travels_as_arrays(blend):
    queries = queries_of(log_of(*pairs(), Timing.SEQUENCE), ALL)
    arrays = {name: np.asarray(array) for name, array in blend.arrays().items()}
    assert all(array.dtype != object for array in arrays.values())
    restored = FittedBlend.from_arrays(arrays)
    assert list(restored.parts) == list(blend.parts)
    np.testing.assert_array_equal(restored.score(queries), blend.score(queries))


def test_its_export_is_that_of_its_parts(blend):
    export = blend.export()
    assert isinstance(export["covisitation"], ItemTable)
    assert set(export) == {"popularity", "covisitation"}


def test_nobody_else_s_class_is_made():
    with pytest.raises(ReleaseError, match="none of recsys's models"):
        fitted_class("os:system")


def test_no_query_is_no_error(blend):
    empty = queries_of(log_of(*pairs(), Timing.SEQUENCE), ALL[:0])
    assert len(Histories.empty()) == 0
    assert blend.score(empty).shape == (0, ITEMS)
