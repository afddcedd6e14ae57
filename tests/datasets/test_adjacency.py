from pathlib import Path

import numpy as np
import pytest

from recsys.datasets.adjacency import read_adjacency
from recsys.errors import DataError
from recsys.interactions import Timing

DATA = Path(__file__).parents[3] / "shared" / "data"


def write(folder, train, test="0 1\n"):
    (folder / "train.txt").write_bytes(train.encode() if isinstance(train, str) else train)
    (folder / "test.txt").write_bytes(test.encode() if isinstance(test, str) else test)
    return folder


def test_gowalla():
    if not (DATA / "gowalla").exists():
        pytest.skip(f"{DATA / 'gowalla'} is not here")
    problem = read_adjacency(DATA / "gowalla")
    train, test = problem.train, problem.test
    assert (train.users, train.items, len(train)) == (29_858, 40_981, 810_128)
    assert (len(test), len(test.target), len(test.masked)) == (29_858, 217_242, 810_128)
    user, masked = (
        np.repeat(np.arange(29_858), test.target_counts),
        np.repeat(np.arange(29_858), np.diff(test.masked_offsets)),
    )
    overlap = np.isin(user * 40_981 + test.target, masked * 40_981 + test.masked)
    assert overlap.sum() == 0


def test_users_and_items_are_those_of_both_files(tmp_path):
    train = "900 7 8\r\n\n17\n900 9 7\n"  # a user on two lines, a pair twice, a user without items
    problem = read_adjacency(write(tmp_path, train, "5 8 11\n900 11\n17\n"))
    log, test = problem.train, problem.test
    assert log.user_ids.tolist() == ["900", "17", "5"]
    assert (log.items, log.timing, log.histories.counts.tolist()) == (4, Timing.NONE, [4, 0, 0])
    assert log.histories.item.tolist() == [0, 1, 2, 0]
    assert test.queries.user.tolist() == [0, 2]  # user 17 has no target, user 5 no history
    assert test.target.tolist() == [3, 1, 3]
    assert test.masked.tolist() == [0, 1, 2]
    assert read_adjacency(tmp_path, repeats=True).test.masked.tolist() == []


def test_ids_may_be_text_huge_or_sparse(tmp_path):
    text = read_adjacency(write(tmp_path, "ann é x-1\nbob é\n", "bob x-1\n"))
    numbers = read_adjacency(write(tmp_path, f"{10**30} 4000000000 -5\n8 4000000000\n", "8 -5\n"))
    assert text.train.user_ids.tolist() == ["ann", "bob"]
    for one, other in ((text.train.histories, numbers.train.histories), (text.test, numbers.test)):
        for column in ("item", "offsets", "target", "masked"):
            if hasattr(one, column):
                np.testing.assert_array_equal(getattr(one, column), getattr(other, column))


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_a_line_ends_as_it_does_anywhere(tmp_path, end):
    """With old Macs' ends all lines were one user."""
    problem = read_adjacency(write(tmp_path, f"0 1 2{end}1 2 3{end}", f"0 3{end}1 1{end}"))
    assert problem.train.user_ids.tolist() == ["0", "1"]
    assert problem.test.target.tolist() == [2, 0]


def test_a_target_that_was_trained_on_counts_as_missed(tmp_path):
    test = read_adjacency(write(tmp_path, "0 1 2\n", "0 2 3\n")).test
    assert test.target.tolist() == [1, 2]
    assert test.masked.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            "0 1 2\n1 2 x\n2 3 4\n",
            "0 3\n",
            r"train\.txt, line 2: 'x' is no whole number.*expected 'user",
        ),
        ("0 1 2\n\n1 2 3\n2 nan 5\n", "0 3\n", r"train\.txt, line 4: 'nan'"),
        ("0 1 2\n1 1.5 3\n2 3\n", "0 3\n", r"train\.txt, line 2: '1\.5'"),
        ("user item\n0 1 2\n1 2 3\n", "0 3\n", r"train\.txt, line 1: 'user'"),
        ("0 1 2\n1 2 3\n2 3 4\n", "0 3\n1,2,3\n2 1\n", r"test\.txt, line 2: '1,2,3'"),
        (b"0 1 2\n1 2 \xff3\n", "0 3\n", r"train\.txt, line 2: not UTF-8"),
        (b"0 1 2\n1 2\x00 3\n", "0 3\n", r"train\.txt, line 2: a null byte"),
        ("", "0 3\n", r"train\.txt is empty"),
        ("\n  \n", "0 3\n", r"train\.txt is empty"),
        ("0\n1\n", "0 3\n", r"train\.txt has no item on any line"),
        ("0 1 2\n", "", r"test\.txt is empty"),
    ],
)
def test_bad_input_names_file_and_line(tmp_path, train, test, message):
    with pytest.raises(DataError, match=message):
        read_adjacency(write(tmp_path, train, test))
