"""`recsys evaluate` as people and scripts meet it: the table, the JSON line last, errors in one line."""

import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from recsys.cli import app
from recsys.cli.evaluate import _bars
from recsys.errors import CapacityError, DataError, SettingsError

KEYS = ["model", "metrics", "seconds", "peak_memory_mb", "seed"]


@pytest.fixture(scope="module")
def adjacency(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users with a taste, who take items of their group; three of ten are held out."""
    folder = tmp_path_factory.mktemp("adjacency")
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for user in range(60):
        taken = rng.permutation(np.arange(user % 4, 80, 4))[:10]
        lines["train"].append(" ".join(map(str, (user, *taken[:7]))))
        lines["test"].append(" ".join(map(str, (user, *taken[7:]))))
    for name, text in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(text) + "\n")
    return folder


@pytest.fixture(scope="module")
def atomic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atomic")
    rng = np.random.default_rng(0)
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(40):
        for item in rng.permutation(30)[:15]:
            rows.append(f"u{user}\ti{item}\t{1 + (user + item) % 5}\t{1_000_000 + rng.integers(10**6)}")
    (folder / "small.inter").write_text("\n".join(rows) + "\n")
    return folder


def evaluate(*arguments: object) -> tuple[str, dict]:
    """What it prints, and its last line on standard output, read."""
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if result.exception:
        raise result.exception
    return result.output, json.loads(result.stdout.strip().splitlines()[-1])


def test_the_last_line_is_json_and_the_table_says_the_same(adjacency):
    output, line = evaluate("--format", "adjacency", "--path", adjacency, "--model", "ease")
    assert list(line) == KEYS
    assert line["model"] == "ease"
    assert line["seed"] == 0
    assert line["metrics"]["recall@20"] > 0.9
    assert {"recall@20", "ndcg@20", "coverage@20", "novelty@20"} <= set(line["metrics"])
    assert f"{line['metrics']['recall@20']:.4f}" in output
    assert "60 users with 80 items" in output


def test_cutoffs_metrics_and_settings_can_be_chosen(adjacency):
    given = ("--format", "adjacency", "--path", adjacency, "--model", "ease")
    _, line = evaluate(*given, "--at", "1,3", "--metric", "hr,mrr", "--set", "regularization=30")
    assert {"hr@1", "hr@3", "mrr@1", "mrr@3"} <= set(line["metrics"])
    assert "recall@20" not in line["metrics"]


def test_two_models_are_compared_user_by_user(adjacency):
    given = ("--format", "adjacency", "--path", adjacency, "--model", "ease", "--against", "popularity")
    output, line = evaluate(*given)
    assert "ease minus popularity" in output
    mean, low, _, p = line["against"]["difference"]["all"]["recall@20"]
    assert line["metrics"]["recall@20"] - line["against"]["metrics"]["recall@20"] == pytest.approx(
        mean, abs=1e-5
    )
    assert low > 0
    assert p < 0.05


def test_seeds_and_folds_are_averaged(atomic):
    given = ("--format", "atomic", "--path", atomic, "--model", "popularity")
    singles = [evaluate(*given, "--seed", s)[1]["metrics"]["ndcg@10"] for s in (1, 2)]
    _, line = evaluate(*given, "--seed", "1,2")
    assert line["seed"] == [1, 2]
    assert line["metrics"]["ndcg@10"] == pytest.approx(np.mean(singles), abs=1e-6)
    output, _ = evaluate(*given, "--folds", 3)
    assert "fold 3 of 3" in output


def test_explicit_models_have_an_rmse(atomic):
    _, line = evaluate("--format", "atomic", "--path", atomic, "--model", "svd")
    assert 0 < line["metrics"]["rmse"] < 3


def renamed(folder: Path, other: Path, seed: int) -> Path:
    """The files of `folder` in `other`: ids are other numbers or texts, and rows stand in another order."""
    rng = np.random.default_rng(seed)
    names = {kind: iter((rng.permutation(900) + 10_000).tolist()) for kind in ("user", "item")}
    given: dict[tuple[str, str], str] = {}
    other.mkdir()
    for path in sorted(folder.iterdir()):
        head, rows = [], [line.split() for line in path.read_text().splitlines()]
        if path.suffix == ".inter":
            head, rows = rows[:1], rows[1:]
        for row in rows:
            ids = 2 if path.suffix == ".inter" else len(row)
            for place in range(ids):
                kind = "item" if place else "user"
                prefix = row[place][0] if row[place][0] in "ui" else ""
                if (kind, row[place]) not in given:
                    given[kind, row[place]] = f"{prefix}{next(names[kind])}"
                row[place] = given[kind, row[place]]
            if path.suffix != ".inter":
                row[1:] = rng.permutation(row[1:]).tolist()
        rows = head + [rows[place] for place in rng.permutation(len(rows))]
        separator = "\t" if path.suffix == ".inter" else " "
        (other / path.name).write_text("\n".join(separator.join(row) for row in rows) + "\n")
    return other


@pytest.mark.parametrize(("format_", "split"), [("adjacency", "given"), ("atomic", "leave-last-out")])
@pytest.mark.parametrize(
    ("model", "noise"),
    [
        ("popularity", 0.03),  # ties
        ("ease regularization=20", 1e-3),
        ("ials factors=8 regularization=0.02 epochs=60", 0.04),  # its start is drawn, so let it converge
    ],
)
def test_what_ids_are_called_and_where_rows_stand_changes_no_metric(
    request, tmp_path, format_, split, model, noise
):
    folder = request.getfixturevalue(format_)
    folders = [folder, *(renamed(folder, tmp_path / str(seed), seed) for seed in (1, 2))]
    given = ("--format", format_, "--split", split, "--model", model, "--at", 10, "--metric", "recall,ndcg")
    found = [evaluate(*given, "--path", path)[1]["metrics"] for path in folders]
    for name in ("recall@10", "ndcg@10", "novelty@10"):
        values = [metrics[name] for metrics in found]
        allowed = noise * (5 if name == "novelty@10" else 1)  # bits
        assert np.ptp(values) <= allowed, (name, values)


def test_a_cutoff_beyond_the_items_ranks_them_all_and_costs_no_more(adjacency):
    """`--at 1000000000` asked for 37 GiB."""
    given = ("--format", "adjacency", "--path", adjacency, "--model", "ease", "--metric", "recall,ndcg")
    _, all_items = evaluate(*given, "--at", 80)
    _, beyond = evaluate(*given, "--at", 10**9)
    assert beyond["metrics"][f"ndcg@{10**9}"] == all_items["metrics"]["ndcg@80"]


def test_json_has_no_nan_where_nothing_could_be_ranked(tmp_path):
    (tmp_path / "train.txt").write_text("0 0\n1 0\n")
    (tmp_path / "test.txt").write_text("0 0\n")
    given = ("--format", "adjacency", "--path", tmp_path, "--model", "ease", "--against", "popularity")
    _, line = evaluate(*given)
    assert line["against"]["difference"]["all"]["novelty@20"] == [None] * 4
    assert "NaN" not in json.dumps(line)


def test_a_path_with_brackets_is_no_markup_of_the_bar():
    """The bar's own error hid what was wrong with the file."""
    console = Console(force_terminal=True, file=io.StringIO())
    with _bars(console) as bars:
        bars.add_task("reading data[/old]")


def test_where_no_terminal_shows_the_bar_lines_say_how_far_it_is(adjacency, monkeypatch):
    monkeypatch.setattr("recsys.cli.evaluate._LOG_SECONDS", 0.0)
    told, _ = evaluate("--format", "adjacency", "--path", adjacency, "--model", "gru4rec passes=2")
    assert "gru4rec passes=2, seed 0: loss " in told


def test_auto_tells_what_it_tried_and_brackets_of_settings_are_no_markup(adjacency):
    """`models=[...]` was read as markup, and told as `models=`."""
    text = "auto models=[popularity,covisitation]"
    out, line = evaluate("--format", "adjacency", "--path", adjacency, "--model", text)
    assert out.count(text) == 2  # what it takes, and the title of the table
    assert line["model"] == "auto"
    assert "chosen: " in out


def test_a_run_can_be_tracked(adjacency, tmp_path):
    store = tmp_path / "mlflow.db"
    given = ("--format", "adjacency", "--path", adjacency, "--model", "popularity", "--seed", 7)
    _, line = evaluate(*given, "--track", f"sqlite:///{store}")
    with sqlite3.connect(store) as database:
        metrics = dict(database.execute("select key, value from metrics"))
        settings = dict(database.execute("select key, value from params"))
    assert metrics["recall_at_20"] == pytest.approx(line["metrics"]["recall@20"])
    assert settings["format"] == "adjacency"
    assert "Popularity(" in settings["settings"]


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (("--model", "esae"), SettingsError, "did you mean 'ease'"),
        (("--model", "ease", "--set", "lambda=3"), SettingsError, "unknown key 'lambda'.*regularization"),
        (("--model", "ease", "--set", "regularization"), SettingsError, "write key=value"),
        (("--model", "ease", "--at", "ten"), SettingsError, "--at 'ten'.*write 10,20"),
        (("--model", "ease", "--at", "0"), SettingsError, "from 1 to"),
        (("--model", "ease", "--at", str(10**22)), SettingsError, "--at '1000.*to 2,147,483,647"),
        (("--model", "ease", "--at", ""), SettingsError, "--at ''.*write 10,20"),
        (("--model", "ease", "--seed", ""), SettingsError, "--seed ''.*write 10,20"),
        (("--model", "ease", "--seed", str(2**63)), SettingsError, "--seed '9223.*to 2,147,483,647"),
        (("--model", "ease", "--metric", ""), SettingsError, "--metric ''.*recall"),
        (("--model", "ease", "--against", ""), SettingsError, "no model ''"),
        (("--model", "ease", "--memory-gb", "0"), SettingsError, "--memory-gb 0: give more than 0"),
        (("--model", "ease", "--memory-gb", "nan"), SettingsError, "--memory-gb nan: give more than 0"),
        (("--model", "bpr learning_rate=1e30"), SettingsError, "diverged.*lower its learning_rate"),
        (
            ("--model", "auto models=[sasrec]", "--memory-gb", "0.25"),
            DataError,
            "sasrec: about .*may be used",
        ),
        (("--model", f"ease neighbors={10**30}"), SettingsError, "neighbors = 10.*must be 2,147,.* or less"),
        (("--model", "svd"), DataError, "no.* has a value .*choose another model"),
        (("--model", "ease", "--metric", "auc"), SettingsError, "'auc'.*recall"),
        (("--model", "ease", "--seed", "x"), SettingsError, "--seed 'x'"),
        (("--model", "ease", "--memory-gb", "0.0001"), CapacityError, "ease.*would take about"),
        (("--model", "ease", "--split", "temporal"), DataError, "temporal.*given, random"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(adjacency, arguments, kind, text):
    with pytest.raises(kind, match=text):
        evaluate("--format", "adjacency", "--path", adjacency, *arguments)
