"""What an event becomes in a history: one meaning for the training log and for the online store.

An absent quantity is 1 and an absent value NaN. Lines of one order share the hash of its id; an event
without an order is a basket of its own. Times are whole seconds, rounded down. Events of items without
a row are left out, and so may be event types: the caller passes those that count.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.hashing import stable_hashes
from recsys.interactions import Interactions
from recsys.types import Histories, offsets_of

ORDER_SALT = "order"


def history_columns(events: pa.Table, *, rows: np.ndarray) -> dict[str, np.ndarray]:
    """`Histories.COLUMNS` of each event [N]; `rows` int32 [N] is each event's item row."""
    order = pc.coalesce(events["order_id"], events["event_id"])
    encoded = pa.chunked_array([order]) if isinstance(order, pa.Array) else order
    encoded = pc.dictionary_encode(encoded.combine_chunks(), null_encoding="encode")
    texts = [text or "" for text in encoded.dictionary.to_pylist()]
    hashes = stable_hashes(texts, salt=ORDER_SALT).view(np.int64)
    return {
        "item": np.asarray(rows, np.int32),
        "time": events["timestamp"].cast(pa.int64()).to_numpy() // 1_000_000,
        "quantity": pc.fill_null(events["quantity"], 1).to_numpy().astype(np.float32),
        "value": pc.fill_null(events["value"], np.nan).to_numpy().astype(np.float32),
        "order": hashes[encoded.indices.to_numpy(zero_copy_only=False)]
        if len(hashes)
        else np.zeros(0, np.int64),
    }


def history_order(owner: np.ndarray, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows by owner, then time, int64 [N]; orders stay together, and which arrived first is no matter."""
    return np.lexsort([columns[c] for c in ("value", "quantity", "item", "order", "time")] + [owner])


def interactions_of(
    events: pa.Table, *, rows: np.ndarray, items: int, weight: np.ndarray | None = None
) -> Interactions:
    """The log of these events, users by id, each history in `history_order`; `items` = V.

    `weight`: how much each event says, float32 [N].
    """
    weight = None if weight is None else weight[rows >= 0]
    events, rows = events.filter(pa.array(rows >= 0)), rows[rows >= 0]
    users = events["user_id"].combine_chunks().dictionary_encode()
    if isinstance(users, pa.ChunkedArray):
        users = users.combine_chunks()
    ids = np.array(users.dictionary.to_pylist(), dtype=object)
    by_id = np.argsort(ids.astype(str), kind="stable")
    code_of = np.empty(len(ids), np.int64)
    code_of[by_id] = np.arange(len(ids))
    user = code_of[users.indices.to_numpy(zero_copy_only=False)] if len(ids) else np.zeros(0, np.int64)
    columns = history_columns(events, rows=rows)
    order = history_order(user, columns)
    offsets = offsets_of(np.bincount(user, minlength=len(ids)))
    histories = Histories(offsets, *(columns[c][order] for c in Histories.COLUMNS))
    return Interactions(ids[by_id], histories, items, weight=None if weight is None else weight[order])
