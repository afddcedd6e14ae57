"""Baskets: what lies in the same order, as an item-to-item table.

Decides that an order holds an item once however many lines name it, that one shared order is chance, and
how the neighbor's own frequency is damped. Knows no time: see `covisitation` for what follows what.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys.interactions import Interactions
from recsys.models.item_to_item.table import ItemTable, truncate_sparse


@dataclass(frozen=True, slots=True)
class BasketSettings:
    damping: float = 0.5  # exponent of the neighbor's own frequency: 0 favors popular, 1 favors rare items
    min_orders: int = 2  # orders that must hold both items: one is chance
    shrinkage: float = 5.0  # added to the item's order count: evidence from few orders is discounted
    neighbors: int = 200


def baskets(interactions: Interactions, *, settings: BasketSettings) -> ItemTable:
    """Co-purchase within one order: n(i, j) / ((n(i) + shrinkage) n(j)^damping), n counting orders.

    With damping 0 it is the shrunken conditional probability P(j | i); with 1, lift (the item-based
    top-N family of Deshpande and Karypis 2004). Sparse throughout.
    """
    log = interactions.histories
    _, order = np.unique(log.order, return_inverse=True)
    ones = np.ones(len(log.item), np.float32)
    contains = sparse.csr_array(
        (ones, (order, log.item)), shape=(order.max(initial=-1) + 1, interactions.items)
    )
    contains.data[:] = 1  # an item on several lines of an order counts once
    together = sparse.csr_array(contains.T @ contains)
    count = together.diagonal()
    row = np.repeat(np.arange(interactions.items), np.diff(together.indptr))
    shared = (together.data >= settings.min_orders) & (row != together.indices)
    row, column = row[shared], together.indices[shared]
    weight = together.data[shared] / ((count[row] + settings.shrinkage) * count[column] ** settings.damping)
    return truncate_sparse(row, column, weight, items=interactions.items, k=settings.neighbors)
