"""The ranker at serving time: NaN-safe, refuses other columns, rows independent of each other."""

import numpy as np
import pytest
import xgboost

from recsys.models.ranker import Ranker


@pytest.fixture(scope="module")
def ranker() -> Ranker:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 4)).astype(np.float32)
    matrix = xgboost.DMatrix(features, label=features[:, 0] > 0)
    return Ranker(xgboost.train({"objective": "binary:logistic", "nthread": 1}, matrix, num_boost_round=5))


def test_scores_order_and_never_are_nan(ranker):
    rows = np.array([[2, 0, 0, 0], [-2, 0, 0, 0], [np.nan] * 4, [np.inf, -np.inf, 0, 0]], np.float32)
    scores = ranker.score(rows)
    assert scores.dtype == np.float32
    assert scores[0] > scores[1]
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores[::-1], ranker.score(rows[::-1].copy()))
    np.testing.assert_array_equal(scores[2:3], ranker.score(rows[2:3]))


def test_other_columns_are_refused_and_nothing_gives_nothing(ranker):
    with pytest.raises(ValueError, match="4 features"):
        ranker.score(np.zeros((2, 5), np.float32))
    assert ranker.score(np.zeros((0, 4), np.float32)).shape == (0,)
