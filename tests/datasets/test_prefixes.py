from pathlib import Path

import pytest

from recsys.datasets.formats import read_problems
from recsys.datasets.prefixes import read_prefixes
from recsys.errors import DataError
from recsys.interactions import Timing
from recsys.types import DAY

DATA = Path(__file__).parents[3] / "shared" / "data" / "diginetica"


def write(folder, train, test):
    (folder / "a.train_sessions.txt").write_text(train)
    (folder / "a.test_prefix_target.txt").write_text(test)
    return folder / "a"


def test_diginetica():
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    problem = read_prefixes(DATA / "diginetica")
    log, test = problem.train, problem.test
    assert (log.users, log.items, len(log) - log.users) == (186_670, 43_097, 719_470)
    assert (len(test), len(test.target), len(test.masked)) == (60_858, 60_858, 0)
    assert set(test.queries.user.tolist()) == {-1}


def test_a_prefix_is_a_stranger_with_a_history(tmp_path):
    stem = write(tmp_path, "5 6 5\n\n7\n", "5 6\t7\r\n\n6\t 9 \n")
    (problem,) = read_problems("prefixes", stem)
    log, test = problem.train, problem.test
    assert log.timing is Timing.SEQUENCE
    assert log.histories.item.tolist() == [0, 1, 0, 2]
    assert log.histories.time.tolist() == [0, DAY, 2 * DAY, 0]
    assert (log.users, log.items) == (2, 4)  # item 9 stands in the test only
    assert test.queries.histories.item.tolist() == [0, 1, 1]
    assert test.queries.histories.time.tolist() == [0, DAY, 0]
    assert test.queries.now.tolist() == [DAY + 1, 1]
    assert test.target.tolist() == [2, 3]
    assert test.masked.tolist() == []
    assert (problem.metrics, problem.at) == (("p", "mrr"), (20,))
    (other,) = read_problems("prefixes", stem, split="leave-last-out")
    assert other.test.queries.user.tolist() == [0]  # its sessions are the log that is split
    assert other.test.masked.tolist() == []


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("1 2\n", "1 2\t3\n1 2 3\n", r"target\.txt, line 2: '1 2 3' is no prefix; expected 'item item"),
        ("1 2\n", "1 2\t3\n\n1\t2 3\n", r"target\.txt, line 3: '1\\t2 3'"),
        ("1 2\n", "1 2\t3\n1\t2\t3\n", r"target\.txt, line 2"),
        ("1 2\n", "1 2\t\n", r"target\.txt, line 1"),
        ("1 2\n", "\t3\n", r"target\.txt, line 1"),
        ("1 2\n3 4 5\n", "1 2\t3\n1 4\tx\n", r"target\.txt, line 2: 'x' is no whole number"),
        ("1 2\n3 item 5\n", "1 2\t3\n", r"sessions\.txt, line 2: 'item' is no whole number"),
        ("", "1 2\t3\n", r"sessions\.txt is empty"),
        ("1 2\n", "\n", r"target\.txt is empty"),
    ],
)
def test_bad_input_names_file_and_line(tmp_path, train, test, message):
    with pytest.raises(DataError, match=message):
        read_prefixes(write(tmp_path, train, test))
