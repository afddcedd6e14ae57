from pathlib import Path

import numpy as np
import pytest

from recsys.datasets.content import hashed
from recsys.datasets.formats import read_problems
from recsys.datasets.sequences import read_sequences
from recsys.errors import DataError
from recsys.interactions import Timing
from recsys.types import DAY

DATA = Path(__file__).parents[3] / "shared" / "data" / "s3rec-beauty-lastfm"


@pytest.mark.parametrize(
    ("name", "users", "items", "rows"),
    [("Beauty", 22_363, 12_101, 198_502), ("LastFM", 1_090, 3_646, 52_551)],
)
def test_public_data(name, users, items, rows):
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    (problem,) = read_problems("sequences", DATA / f"{name}.txt")
    log, test = problem.train, problem.test
    assert (log.users, log.items, len(log)) == (users, items, rows - users)
    assert (len(test), len(test.target)) == (users, users)
    assert log.item_tokens is not None
    assert len(log.item_tokens) == items
    user = np.repeat(np.arange(users), np.diff(test.masked_offsets))
    assert not np.isin(np.arange(users) * items + test.target, user * items + test.masked).any()


def test_order_attributes_and_users_with_one_item(tmp_path):
    (tmp_path / "a.txt").write_text("u 10 20 10 30\nv 20\nw\nu 40\n")
    (tmp_path / "a_item2attributes.json").write_text('{"20": [1, "x"], "40": [1], "99": [3]}')
    log = read_sequences(tmp_path / "a.txt")
    assert log.timing is Timing.SEQUENCE
    assert log.user_ids.tolist() == ["u", "v", "w"]
    assert log.histories.item.tolist() == [0, 1, 0, 2, 3, 1]
    assert log.histories.time.tolist() == [0, DAY, 2 * DAY, 3 * DAY, 4 * DAY, 0]
    assert log.item_tokens is not None
    assert log.item_tokens.offsets.tolist() == [0, 0, 2, 2, 3]
    assert log.item_tokens.id.tolist() == hashed(["attribute=1", "attribute=x", "attribute=1"]).tolist()
    (problem,) = read_problems("sequences", tmp_path / "a.txt")
    assert problem.test.queries.user.tolist() == [0]  # v trains, and is not asked
    assert (problem.metrics, problem.at) == (("hr", "ndcg"), (10,))
    assert problem.test.target.tolist() == [3]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ('{"1": [1],\n "2": [1,}', r"a_item2attributes\.json, line 2: .*expected one JSON object"),
        ("[1, 2]", r"holds a list; expected one JSON object"),
        ('{"1": 5}', r"item '1' has 5"),
        ("", r"a_item2attributes\.json is empty"),
        ('{"1": [null]}', r"item '1' has \[None\]"),
        (r'{"1": ["\ud800"]}', r"item '1' has"),
        ('{"1": [' + "9" * 5000 + "]}", r"can't be read .*expected one JSON object"),
        ('{"1": ' + "[" * 100_000, r"can't be read .*expected one JSON object"),
        ('{"9": [1]}', r"names '9', but no item of the sequences"),
    ],
)
def test_bad_attributes(tmp_path, attributes, message):
    (tmp_path / "a.txt").write_text("1 2 3\n")
    (tmp_path / "a_item2attributes.json").write_text(attributes)
    with pytest.raises(DataError, match=message):
        read_sequences(tmp_path / "a.txt")


def test_bad_lines(tmp_path):
    (tmp_path / "a.txt").write_text("1 2 3\n2 3 4\n3 4 five\n")
    with pytest.raises(DataError, match=r"a\.txt, line 3: 'five' is no whole number"):
        read_sequences(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="no item on any line"):
        read_sequences(tmp_path / "a.txt")
