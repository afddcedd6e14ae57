"""Baskets: weights by hand, one shared order is chance."""

import numpy as np
import pytest

from recsys.interactions import Interactions
from recsys.models.item_to_item.baskets import BasketSettings, baskets
from recsys.types import Histories


def test_basket_weights_by_hand():
    histories = Histories(
        np.array([0, 4, 6], np.int32),
        np.array([0, 1, 0, 0, 0, 2], np.int32),
        np.arange(6, dtype=np.int64),
        np.ones(6, np.float32),
        np.ones(6, np.float32),
        np.array([1, 1, 2, 2, 3, 3], np.int64),  # order 2 holds item 0 on two lines
    )
    log = Interactions(np.array(["a", "b"], object), histories, 4)
    table = baskets(log, settings=BasketSettings(damping=0.5, shrinkage=1, min_orders=1, neighbors=2))
    weights = table.matrix.toarray()
    assert weights[0, 1] == pytest.approx(1 / (3 + 1) / 1)  # 3 orders with item 0, one of them with item 1
    assert weights[1, 0] == pytest.approx(1 / (1 + 1) / np.sqrt(3))
    assert weights[1, 2] == 0
    assert (table.neighbor[3] == -1).all()  # nobody bought it
    strict = baskets(log, settings=BasketSettings(min_orders=2))
    assert strict.matrix.nnz == 0  # no two items share two orders


def test_nothing_and_one_item_have_no_neighbors():
    nobody = Interactions(np.array(["a"], object), Histories.empty(1), 3)
    assert (baskets(nobody, settings=BasketSettings()).neighbor == -1).all()
    one = Histories(
        np.array([0, 1], np.int32),
        np.array([0], np.int32),
        np.array([5], np.int64),
        np.ones(1, np.float32),
        np.ones(1, np.float32),
        np.array([1], np.int64),
    )
    table = baskets(Interactions(np.array(["a"], object), one, 1), settings=BasketSettings())
    assert (table.neighbor == -1).all()
    assert table.score(one, weights=np.ones(1, np.float32)).nnz == 0
