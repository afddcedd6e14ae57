"""Items that change while requests read them."""

import threading

import numpy as np
import polars as pl
import pytest

from recsys.catalog.changelog import Change, Claim
from recsys.pipeline.items import DELETED, UNKNOWN, Growing, LiveItems, Names
from tests.world import item_frame

V, D = 6, 3


def known() -> LiveItems:
    frame = item_frame(V).with_columns(pl.Series("category", ["mug", "", "clock", "mug", "lamp", "clock"]))
    vectors = np.arange(V * D, dtype=np.float32).reshape(V, D)
    return LiveItems(frame, vectors=vectors, category=np.array([2, -1, 0, 2, 1, 0], np.int32))


def record(item_id: str, **columns) -> dict:
    return {"item_id": item_id, "title": item_id.upper()} | columns


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
    items.upsert([1, 9], new)
    items.vectors.put(9, np.full(D, 0.5, np.float32))
    assert items.line[np.arange(11)].tolist() == [0, V, 2, 3, 4, 5, *[UNKNOWN] * 3, V + 1, UNKNOWN]
    assert len(items.frame) == V + 2
    assert items.category[np.array([1, 9, 8])].tolist() == [0, 3, -1]  # as others of that name; a new one
    assert items.vectors[np.array([1, 9, 8])].tolist() == [[3, 4, 5], [0.5] * D, [0] * D]
    items.delete([9, 0])
    assert items.line[np.array([9, 0, 1])].tolist() == [DELETED, DELETED, V]
    items.upsert([0], new[1:])
    assert items.line[np.array([0])].tolist() == [V + 2]
    assert items.category[np.array([0])].tolist() == [3]


def test_an_upsert_of_other_columns_is_refused_and_changes_nothing():
    items = known()
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        items.upsert([1], pl.DataFrame({"item_id": ["x"], "category": ["mug"]}))
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
        items.upsert([number % 40], items.frame[:1])
    done.set()
    thread.join()
    assert not wrong
    assert items.line[np.array([39])].tolist() == [V + 399]


def test_changes_of_the_catalog_count_in_their_order():
    items = known()
    vector = np.full(D, 0.5, np.float32)
    items.apply(
        [
            Change("new", 6, Claim("b", 6), "upsert", record("new", categories=["vase"]), {"s": vector}),
            Change("i0", 0, None, "delete"),
            Change("i1", 1, None, "delete"),
            Change("i1", 1, None, "upsert", record("i1", title="back again")),
            Change("i2", 2, None, "upsert", record("i2"), {"other": vector, "s": vector[:2]}),
        ],
        space="s",
    )
    assert items.line[np.arange(8)].tolist() == [DELETED, V + 1, V + 2, 3, 4, 5, V, UNKNOWN]
    assert items.frame["title"][V:].to_list() == ["NEW", "back again", "I2"]
    assert items.vectors[np.array([6, 2])].tolist() == [[0.5] * D, [6, 7, 8]]  # of another space, or size
    assert items.rows_of_lines(V - 2, V + 3).tolist() == [V - 2, V - 1, 6, 1, 2]


@pytest.mark.parametrize("size", [1, 2, 10])
def test_when_an_item_was_published_is_said_once(size):
    items = known()
    published = pl.Series("published_at", [None, 5, 6, 7, 8, 9], dtype=pl.Int64)
    items = LiveItems(
        items.frame.with_columns(published),
        vectors=np.zeros((V, D), np.float32),
        category=np.zeros(V, np.int32),
    )
    first, later = "1970-01-01T00:01:40+00:00", "1970-01-01T00:03:20+00:00"
    changes = [
        Change("i0", 0, None, "upsert", record("i0", published_at=first)),
        Change("i1", 1, None, "upsert", record("i1", published_at=first)),
        Change("new", 6, None, "upsert", record("new", published_at=first)),
        Change("new", 6, None, "upsert", record("new")),
        Change("new", 6, None, "delete"),
        Change("new", 6, None, "upsert", record("new", published_at=later)),
        Change("i2", 2, None, "delete"),
        Change("i2", 2, None, "upsert", record("i2")),
    ]
    for start in range(0, len(changes), size):
        items.apply(changes[start : start + size], space="s")
    line = items.line[np.array([0, 1, 6, 2])].tolist()
    # Null counts: an item that was always there must not leave the vocabulary of earlier moments.
    assert items.frame["published_at"].gather(line).to_list() == [None, 5, 100, 6]


def test_an_item_without_a_category_gets_the_commonest_that_its_title_names():
    items = known()
    titles = ["two clocks on a mug", "a lamp", "vases", None]
    items.apply(
        [Change("x", V + n, None, "upsert", record("x", title=t)) for n, t in enumerate(titles)], space="s"
    )
    assert items.frame["category"][V:].to_list() == ["mug", "lamp", "", ""]


def test_many_small_changes_leave_few_chunks():
    items = known()
    for number in range(300):
        items.apply([Change("i1", 1, None, "upsert", record("i1", price=float(number)))], space="s")
    assert items.frame.n_chunks() <= 101
    assert items.frame["price"][int(items.line[np.array([1])][0])] == 299.0


def test_names_grow_with_the_catalog():
    names = Names(["a", "b"], ["A", None])
    changes = [
        Change("c", 2, Claim("b", 2), "upsert", {"title": "C"}),
        Change("b", 1, None, "upsert", {"title": "B"}),
        Change("a", 0, None, "delete"),
        Change("d", 3, Claim("b", 2), "upsert", {}),
    ]
    names.apply(list(enumerate(changes)))
    assert (names.ids, names.titles) == (["a", "b", "c", "d"], ["A", "B", "C", None])
    assert names.rows == {"a": 0, "b": 1, "c": 2, "d": 3}
