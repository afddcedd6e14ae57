"""Items that change while requests read them."""

import threading

import numpy as np
import polars as pl
import pytest

from recsys.pipeline.items import DELETED, UNKNOWN, Growing, LiveItems
from tests.world import item_frame

V, D = 6, 3


def known() -> LiveItems:
    frame = item_frame(V).with_columns(pl.Series("category", ["mug", "", "clock", "mug", "lamp", "clock"]))
    vectors = np.arange(V * D, dtype=np.float32).reshape(V, D)
    return LiveItems(frame, vectors=vectors, category=np.array([2, -1, 0, 2, 1, 0], np.int32))


def test_an_array_has_a_value_for_every_row():
    growing = Growing(np.arange(4, dtype=np.float32), beyond=-7.0)
    rows = np.array([[0, 3, 4], [900, 2, 70]])
    assert growing[rows].tolist() == [[0, 3, -7], [-7, 2, -7]]
    growing.put(70, 5.0)
    growing.put(2, 6.0)
    assert growing[rows].tolist() == [[0, 3, -7], [-7, 6, 5]]
    assert growing[rows].dtype == np.float32
    assert len(growing) == 4
    assert growing[np.zeros(0, np.int32)].tolist() == []
    assert Growing(np.zeros((0, 2)), beyond=1)[np.array([5])].tolist() == [[1, 1]]


def test_an_upsert_gives_an_item_a_new_line():
    items = known()
    new = items.frame[:2].with_columns(pl.Series("category", ["clock", "vase"]))
    items.upsert([1, 9], new, {9: np.full(D, 0.5, np.float32)})
    assert items.line[np.arange(11)].tolist() == [0, V, 2, 3, 4, 5, *[UNKNOWN] * 3, V + 1, UNKNOWN]
    assert len(items.frame) == V + 2
    assert items.category[np.array([1, 9, 8])].tolist() == [0, 3, -1]  # as others of that name; a new one
    assert items.vectors[np.array([1, 9, 8])].tolist() == [[3, 4, 5], [0.5] * D, [0] * D]
    items.delete([9, 0])
    assert items.line[np.array([9, 0, 1])].tolist() == [DELETED, DELETED, V]
    items.upsert([0], new[1:], {})
    assert items.line[np.array([0])].tolist() == [V + 2]
    assert items.category[np.array([0])].tolist() == [3]


def test_an_upsert_of_other_columns_is_refused_and_changes_nothing():
    items = known()
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        items.upsert([1], pl.DataFrame({"item_id": ["x"], "category": ["mug"]}), {})
    assert items.line[np.array([1])].tolist() == [1]


def test_a_reader_never_has_a_line_without_its_columns():
    items, done, wrong = known(), threading.Event(), []

    def read() -> None:
        while not done.is_set():
            line, frame = items.line[np.arange(40)], items.frame
            if line.max() >= len(frame):
                wrong.append((line.max(), len(frame)))

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(400):
        items.upsert([number % 40], items.frame[:1], {})
    done.set()
    thread.join()
    assert not wrong
    assert items.line[np.array([39])].tolist() == [V + 399]
