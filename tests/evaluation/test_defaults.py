"""Each model as it comes, on a small data set of each format: it answers, or says what is missing."""

import json
from pathlib import Path

import numpy as np
import pytest

from recsys.datasets.formats import FORMATS, read_problems
from recsys.datasets.problem import Problem
from recsys.errors import DataError
from recsys.evaluation.retrieval import metrics_of, run_model, summarize
from recsys.training.retrieval_models import MODELS, model_class

USERS, ITEMS = 30, 24
RATED = ("atomic", "events")


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Problem]:
    """Users with a taste each, who take ten items; with content where the format has a place for it."""
    folder = tmp_path_factory.mktemp("formats")
    rng = np.random.default_rng(0)
    weight = np.where(np.arange(ITEMS) % 3 == np.arange(USERS)[:, None] % 3, 8.0, 1.0)
    taken = [rng.choice(ITEMS, 10, replace=False, p=w / w.sum()).tolist() for w in weight]
    lists = [" ".join(map(str, items)) for items in taken]
    places = {
        "adjacency": adjacency(folder / "graph", lists),
        "sequences": sequences(folder / "order.txt", lists),
        "prefixes": prefixes(folder / "web", lists),
        "atomic": atomic(folder / "rated", taken),
        "events": events(folder / "log.jsonl", taken),
    }
    return {name: read_problems(name, path)[0] for name, path in places.items()}


def adjacency(folder: Path, lists: list[str]) -> Path:
    folder.mkdir()
    parts = [items.rsplit(" ", 3) for items in lists]
    (folder / "train.txt").write_text("\n".join(f"{u} {first}" for u, (first, *_) in enumerate(parts)))
    (folder / "test.txt").write_text("\n".join(f"{u} {' '.join(last)}" for u, (_, *last) in enumerate(parts)))
    return folder


def sequences(path: Path, lists: list[str]) -> Path:
    path.write_text("\n".join(f"{u} {items}" for u, items in enumerate(lists)))
    attributes = {str(i): [i % 3] for i in range(ITEMS)}
    path.with_name("order_item2attributes.json").write_text(json.dumps(attributes))
    return path


def prefixes(stem: Path, lists: list[str]) -> Path:
    Path(f"{stem}.train_sessions.txt").write_text("\n".join(lists[:20]))
    asked = ["\t".join(items.rsplit(" ", 1)) for items in lists[20:]]
    Path(f"{stem}.test_prefix_target.txt").write_text("\n".join(asked))
    return stem


def atomic(folder: Path, taken: list[list[int]]) -> Path:
    folder.mkdir()
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    rows += [
        f"{u}\t{i}\t{1 + (u + i) % 5}\t{100 * n + u}" for u, of in enumerate(taken) for n, i in enumerate(of)
    ]
    (folder / "x.inter").write_text("\n".join(rows))
    items = [f"{i}\tkind {i % 3}" for i in range(ITEMS)]
    (folder / "x.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *items]))
    users = [f"{u}\t{u % 2}" for u in range(USERS)]
    (folder / "x.user").write_text("\n".join(["user_id:token\tgroup:token", *users]))
    return folder


def events(path: Path, taken: list[list[int]]) -> Path:
    """Purchases with what they cost, views, and ratings, up to the end."""
    kinds = [("view", None), ("purchase", 99.5), ("rating", 4.0), ("click", None)]
    lines = []
    for u, items in enumerate(taken):
        for n, item in enumerate(items):
            kind, value = kinds[(u + n) % 4]
            time = f"{np.datetime64(1_700_000_000 + 86_400 * n + u, 's')}Z"
            known = {"user_id": f"u{u}", "item_id": f"i{item}", "event_type": kind, "timestamp": time}
            lines.append(json.dumps(known if value is None else known | {"value": value - u % 3}))
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_answers_on_every_format(problems, name, format_):
    model = model_class(name)()
    if model.explicit and format_ not in RATED:
        with pytest.raises(DataError, match=r"has a value \(rating\)"):
            run_model(model, problems[format_], seed=0)
        return
    run = run_model(model, problems[format_], seed=0)
    metrics = metrics_of(summarize([run]))
    assert ("rmse" in metrics) == model.explicit
    assert all(value is not None and np.isfinite(value) for value in metrics.values()), metrics
