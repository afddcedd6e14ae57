"""The format decides how a path is read; the names of things decide nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.datasets.formats import FORMATS, looks_like, read_problems
from recsys.errors import DataError

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


@pytest.fixture
def places(tmp_path):
    """A small example of each format, by its name."""
    adjacency, atomic = tmp_path / "graph", tmp_path / "rated"
    adjacency.mkdir()
    atomic.mkdir()
    rows = [(u, (u * 5 + i * i) % 11) for u in range(8) for i in range(5)]
    lines = [f"{u} {' '.join(str(i) for v, i in rows if v == u)}" for u in range(8)]
    (adjacency / "train.txt").write_text("\n".join(lines))
    (adjacency / "test.txt").write_text("0 12\n1 13 12\n")
    (tmp_path / "order.txt").write_text("\n".join(lines))
    (tmp_path / "web.train_sessions.txt").write_text("\n".join(line[2:] for line in lines))
    (tmp_path / "web.test_prefix_target.txt").write_text("1 2\t3\n4\t5\n")
    table = "".join(f"{u}\t{i}\t{n % 5 + 1}\t{n}\n" for n, (u, i) in enumerate(rows))
    (atomic / "x.inter").write_text(HEADER + table)
    events = ["event_id,user_id,item_id,event_type,timestamp"]
    events += [f"{n},{u},{i},click,{1_700_000_000 + n}" for n, (u, i) in enumerate(rows)]
    (tmp_path / "log.csv").write_text("\n".join(events))
    return {
        "adjacency": adjacency,
        "sequences": tmp_path / "order.txt",
        "prefixes": tmp_path / "web",
        "atomic": atomic,
        "events": tmp_path / "log.csv",
    }


@pytest.mark.parametrize("name", list(FORMATS))
def test_each_format_is_known_by_its_files(places, name):
    assert looks_like(places[name]) == name
    (problem,) = read_problems(name, places[name])
    assert len(problem.train)
    assert len(problem.test)
    assert (problem.metrics, problem.at) == (FORMATS[name].metrics, (FORMATS[name].at,))


@pytest.mark.parametrize("name", list(FORMATS))
def test_each_format_splits_as_asked_or_says_how_it_can(places, name):
    possible = {
        "adjacency": ["given", "random"],
        "sequences": ["random", "leave-last-out"],
        "prefixes": ["given", "random", "leave-last-out"],
        "atomic": ["temporal", "random", "leave-last-out"],
        "events": ["temporal", "random", "leave-last-out"],
    }[name]
    for split in ("given", "temporal", "random", "leave-last-out"):
        if split in possible:
            (problem,) = read_problems(name, places[name], split=split)
            assert len(problem.test)
        else:
            with pytest.raises(DataError, match=f"can't be split '{split}'.*split {', '.join(possible)}"):
                read_problems(name, places[name], split=split)
    assert len(read_problems(name, places[name], folds=3)) == 3
    repeats = read_problems(name, places[name], split="random", repeats=True)[0].test
    assert len(repeats.masked) == 0
    assert len(read_problems(name, places[name], split="random", k_core=2)[0].train)


@pytest.mark.parametrize("wanted", list(FORMATS))
@pytest.mark.parametrize("found", list(FORMATS))
def test_a_path_of_another_format_is_refused_with_its_name(places, wanted, found):
    if {wanted, found} == {"sequences"} or wanted == found:
        return
    if (wanted, found) == ("events", "sequences"):  # .txt may be CSV: its columns are no event's
        with pytest.raises(DataError, match="unknown column"):
            read_problems(wanted, places[found])
        return
    with pytest.raises(DataError, match=f"{wanted} is a .*; it looks like --format {found}"):
        read_problems(wanted, places[found])


def test_what_is_missing_is_named(tmp_path, places):
    for name in FORMATS:
        with pytest.raises(DataError, match=rf"{tmp_path / 'nowhere'}.*; {name} is "):
            read_problems(name, tmp_path / "nowhere")
    (places["adjacency"] / "test.txt").unlink()
    with pytest.raises(DataError, match=r"has no file test\.txt; adjacency is a folder with train\.txt and"):
        read_problems("adjacency", places["adjacency"])
    with pytest.raises(DataError, match=rf"txt is no stem, but {tmp_path / 'web'} is"):
        read_problems("prefixes", tmp_path / "web.train_sessions.txt")
    with pytest.raises(DataError, match=rf"{tmp_path} is no stem, but {tmp_path / 'web'} is"):
        read_problems("prefixes", tmp_path)
    with pytest.raises(DataError, match=r"is no text file of ids; .*looks like --format events"):
        read_problems("sequences", tmp_path / "log.csv")


def test_a_table_that_may_not_be_read_is_not_said_to_be_broken(tmp_path, monkeypatch):
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,2\n")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read all
    with pytest.raises(DataError, match=r"log\.csv is not readable for this user"):
        read_problems("events", tmp_path / "log.csv")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("graph", {}, "no format 'graph'; known: adjacency, sequences"),
        ("atomic", {"split": "latest"}, "no split 'latest'; known: given, temporal"),
        ("atomic", {"split": "temporal", "folds": 5}, "folds are made at random"),
        ("atomic", {"folds": 1}, "1 folds leave nothing"),
        ("atomic", {"folds": 1000}, "1000 folds of 40 user-item pairs"),
        ("atomic", {"k_core": 0}, "0-core"),
        ("atomic", {"k_core": 20}, "lower --k-core"),
        ("adjacency", {"k_core": 2}, "would change the split.*choose --split random"),
        ("adjacency", {"min_rating": 3}, "adjacency has no ratings"),
        ("events", {"min_rating": 3}, "no event of type rating"),
    ],
)
def test_options_that_make_no_sense(places, name, options, message):
    with pytest.raises(DataError, match=message):
        read_problems(name, places.get(name, "."), **options)


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("adjacency", "test.txt", "7\n"),  # nobody has a target
        ("sequences", None, "1 2\n2 3\n"),  # nobody has two
        ("atomic", "x.inter", HEADER + "1\t1\t5\t1\n"),  # one interaction in all
    ],
)
def test_nothing_to_ask_is_an_error(places, name, file, text):
    (places[name] / file if file else places[name]).write_text(text)
    with pytest.raises(DataError, match=r"leaves no query.*choose another\s+split"):
        read_problems(name, places[name])


def arrays(problem):
    """All numbers of a problem."""
    log = problem.train.histories
    parts = [log.offsets, log.item, log.time, log.value]
    test = problem.test
    parts += [test.queries.user, test.queries.histories.item, test.queries.now]
    return [*parts, test.target_offsets, test.target, test.masked_offsets, test.masked]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=4, max_size=9),
    st.randoms(use_true_random=False),
    st.sampled_from(["adjacency", "sequences", "prefixes", "atomic"]),
)
def test_other_ids_make_the_same_problem(tmp_path_factory, lines, random, name):
    """Whatever users and items are called: numbers, larger numbers in another order, or text."""
    others = random.sample(range(10**6, 10**7), 20)
    problems = []
    for number, rename in enumerate((str, lambda i: str(others[i]), lambda i: f"é{others[i]}")):
        folder = tmp_path_factory.mktemp(f"ids-{number}")
        named = [[rename(i) for i in line] for line in lines]
        rows = [f"{rename(10 + u)} {' '.join(line)}" for u, line in enumerate(named)]
        path = folder
        if name == "adjacency":
            (folder / "train.txt").write_text("\n".join(rows[:-2]))
            (folder / "test.txt").write_text("\n".join(rows[2:]))
        elif name == "sequences":
            path = folder / "x.txt"
            path.write_text("\n".join([*rows, rows[0]]))
        elif name == "prefixes":
            path = folder / "x"
            (folder / "x.train_sessions.txt").write_text("\n".join(" ".join(line) for line in named))
            (folder / "x.test_prefix_target.txt").write_text(f"{rename(3)}\t{rename(4)}")
        else:
            table = [(10 + u, i, n % 7) for u, line in enumerate(lines) for n, i in enumerate([*line, 0, 1])]
            text = "".join(f"{rename(u)}\t{rename(i)}\t3\t{t}\n" for u, i, t in table)
            (folder / "x.inter").write_text(HEADER + text)
        problems.append(read_problems(name, path)[0])
    for other in problems[1:]:
        for one, two in zip(arrays(problems[0]), arrays(other), strict=True):
            np.testing.assert_array_equal(one, two)
