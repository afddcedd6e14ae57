from pathlib import Path

import numpy as np
import pytest

from recsys.datasets.atomic import read_atomic
from recsys.datasets.content import hashed
from recsys.datasets.formats import read_problems
from recsys.errors import DataError
from recsys.interactions import Timing

DATA = Path(__file__).parents[3] / "shared" / "data" / "ml-100k"
HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def write(folder, inter, **others):
    for ending, text in {"inter": inter, **others}.items():
        content = text.encode() if isinstance(text, str) else text
        (folder / f"a.{ending}").write_bytes(content)
    return folder


def test_movielens_in_recboles_protocol():
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    (problem,) = read_problems("atomic", DATA, seed=3)
    log, test = problem.train, problem.test
    assert (log.users, log.items) == (943, 1682)
    hidden = np.diff(test.masked_offsets)  # what is trained on, and the validation part
    counts = hidden + test.target_counts
    assert counts.sum() == 100_000
    assert (test.target_counts == counts // 10).all()
    assert (hidden - log.histories.counts == counts // 10).all()
    assert (problem.metrics, problem.at) == (("recall", "mrr", "ndcg", "hr"), (10,))
    assert log.timing is Timing.CLOCK
    assert log.item_tokens is not None
    toy_story = log.item_tokens  # item 1 has a title of two words, a year and three genres
    assert (np.diff(toy_story.offsets) >= 2).all()
    folds = read_problems("atomic", DATA, folds=5)
    assert [len(fold.test.target) for fold in folds] == [20_000] * 5
    assert np.isin(folds[0].test.value, [1, 2, 3, 4, 5]).all()


def test_content_becomes_tokens(tmp_path):
    users = "age:float\tuser_id:token\tjob:token\n" + "".join(f"{20 + n}\tu{n}\t\n" for n in range(10))
    items = (
        "item_id:token\ttitle:token_seq\tvector:float_seq\tyear:token\n"
        "i1\tToy  Story\t.1 .2\t1995\ni9\t\t\tnone\n"
    )
    log = read_atomic(write(tmp_path, HEADER + "u1\ti1\t4\t7\nu1\ti2\t\t5\n", user=users, item=items))
    assert log.user_ids.tolist() == ["u1", "u0", *(f"u{n}" for n in range(2, 10))]
    assert log.items == 3  # i1 and i2 were taken, i9 is described
    assert log.histories.item.tolist() == [1, 0]  # by time
    np.testing.assert_array_equal(log.histories.value, [np.nan, 4])
    assert log.item_tokens is not None
    assert log.user_tokens is not None
    expected = hashed(["title=Toy", "title=Story", "year=1995", "year=none"])
    assert log.item_tokens.id.tolist() == expected.tolist()
    assert log.item_tokens.offsets.tolist() == [0, 3, 3, 4]
    assert log.user_tokens.id.tolist() == hashed([f"age={n}" for n in (1, 0, *range(2, 10))]).tolist()


def test_time_and_ratings_are_optional(tmp_path):
    log = read_atomic(write(tmp_path, "item_id:token\tuser_id:token\tnote:token_seq\n1\t2\ta b\n3\t2\t\n"))
    assert (log.timing, len(log)) == (Timing.NONE, 2)
    assert np.isnan(log.histories.value).all()
    assert log.item_tokens is log.user_tokens is None
    with pytest.raises(DataError, match="omit --min-rating"):
        read_atomic(tmp_path, min_rating=3)
    with pytest.raises(DataError, match="it has no clock; atomic can be split random"):
        read_problems("atomic", tmp_path, split="temporal")
    log = read_atomic(write(tmp_path, HEADER + "1\t2\t\t1577836800000\n1\t3\t\t1577836801999\n"))
    assert log.histories.time.tolist() == [1_577_836_800, 1_577_836_801]  # milliseconds, by their size


def test_what_is_rated_low_or_not_at_all_is_left_out(tmp_path):
    rows = "1\t1\t4\t1\n1\t2\t3.5\t2\n2\t1\tNaN\t3\n2\t3\t5\t4\n"
    log = read_atomic(write(tmp_path, HEADER + rows), min_rating=4)
    assert log.histories.item.tolist() == [0, 2]
    assert log.histories.value.tolist() == [4, 5]
    with pytest.raises(DataError, match="best rating is 5; lower"):
        read_atomic(tmp_path, min_rating=6)


def test_all_events_of_a_pair_go_to_one_side(tmp_path):
    rows = [(u, i, n % 5 + 1, n) for n, (u, i) in enumerate((u, i % 7) for u in range(9) for i in range(15))]
    write(tmp_path, HEADER + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    for problem in (*read_problems("atomic", tmp_path), *read_problems("atomic", tmp_path, folds=4)):
        log, test = problem.train, problem.test
        trained = set(zip(log.histories.request.tolist(), log.histories.item.tolist(), strict=True))
        user = np.repeat(test.queries.user, test.target_counts)
        tested = list(zip(user.tolist(), test.target.tolist(), strict=True))
        assert not trained & set(tested)
        for (u, i), value in zip(tested, test.value, strict=True):
            assert value == [r for v, j, r, _ in rows if (v, j) == (u, i)][-1]


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        (HEADER + "1\t1\t4\t1\n1\t2\tfour\t2\n", r"a\.inter, line 3: rating 'four' is no number"),
        (HEADER + "1\t1\t4\t1\n\n1\t2\tinf\t2\n", r"a\.inter, line 4: rating 'inf'"),
        (HEADER + "1\t1\t1e39\t1\n", r"a\.inter, line 2: rating '1e39' is too large"),
        (HEADER + "1\t1\t4\t1\n1\t2\t1_0\t2\n", r"a\.inter, line 3: rating '1_0' is no number"),
        (HEADER + "1\t1\t4\t1e30\n", r"a\.inter, line 2: timestamp '1e30' is too large"),
        (HEADER + "1\t1\t4\t5\n1\t2\t4\t6\n1\t3\t4\t6e12\n", r"line 4: timestamp 6e\+12 is of another unit"),
        (HEADER + "1\t1\t4\t1\n1\t2\t3\n", r"a\.inter, line 3: 3 columns where the header has 4"),
        (HEADER + "1\t1\t4\t1\n1\t2\t3\t4\t5\n", r"a\.inter, line 3: 5 columns"),
        (HEADER + "1\t1\t4\t1\n\t2\t3\t4\n", r"a\.inter, line 3: no user_id"),
        (HEADER + "1\t1\t4\t1\n1\t\t3\t4\n", r"a\.inter, line 3: no item_id"),
        (HEADER + "1\t1\t4\t1\n1\t2\t3\tnoon\n", r"a\.inter, line 3: timestamp 'noon'"),
        (HEADER + "1\t1\t4\t1\n1\t2\t3\t\n", r"a\.inter, line 3: no timestamp"),
        ("1\t1\t4\t1\n1\t2\t3\t2\n", r"a\.inter, line 1: '1' is no name:type"),
        ("user_id\titem_id\n1\t2\n", r"line 1: 'user_id' is no name:type between tabs; types are token"),
        ("user_id:token\tmovie:token\n1\t2\n", r"line 1: no column 'item_id' among user_id, movie"),
        ("user_id:token\titem_id:token\titem_id:token\n1\t2\t3\n", r"line 1: a column stands twice"),
        (HEADER, r"no row after its header"),
        ("", r"a\.inter is empty"),
        (HEADER.encode() + b"1\t\xe9\t4\t1\n", r"a\.inter, line 2: not UTF-8"),
    ],
)
def test_bad_input_names_file_and_line(tmp_path, inter, message):
    with pytest.raises(DataError, match=message):
        read_atomic(write(tmp_path, inter))


def test_bad_descriptions(tmp_path):
    write(tmp_path, HEADER + "1\t1\t4\t1\n", item="item_id:token\tprice:float\n1\t2\n2\tdear\n")
    with pytest.raises(DataError, match=r"a\.item, line 3: price 'dear' is no number"):
        read_atomic(tmp_path)
    write(tmp_path, HEADER + "1\t1\t4\t1\n", item="item_id:token\tprice:float\n1\t2\n1\t3\n")
    with pytest.raises(DataError, match=r"a\.item, line 3: item '1' stands twice"):
        read_atomic(tmp_path)
    (tmp_path / "b.inter").write_text(HEADER)
    with pytest.raises(DataError, match=r"several files \*\.inter \(a\.inter, b\.inter\)"):
        read_atomic(tmp_path)
