"""SimpleX of RecBole, one run; started by benchmarks/training.py, in an environment of its own.

    python recbole_models.py REQUEST.json

As implicit_models.py: pairs in, vectors after each epoch of `keep` and the seconds of training out. An
epoch is one of RecBole's trainer, with its sampling of negatives. The first epoch's seconds have the making
of the model in them, not the reading.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

# RecBole 1.2.1 is of the time when numpy still had these names.
for name, kind in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
    if not hasattr(np, name):
        setattr(np, name, kind)
for name, kind in {"bool": np.bool_, "int": np.int64, "float": np.float64, "long": np.int64}.items():
    if name not in np.__dict__:
        setattr(np, name, kind)

import scipy.sparse  # noqa: E402
import torch  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import get_model, init_seed  # noqa: E402
from torch.nn import functional  # noqa: E402

# ... and scipy this method.
if not hasattr(scipy.sparse.dok_matrix, "_update"):
    scipy.sparse.dok_matrix._update = lambda matrix, entries: matrix._dict.update(entries)


def write_pairs(folder: Path, user: np.ndarray, item: np.ndarray) -> None:
    """The data set `pairs` as RecBole reads it; what it validates and tests on is of no interest."""
    folder.mkdir(parents=True)
    lines = [f"{u}\t{i}" for u, i in zip(user.tolist(), item.tolist())]
    header = "user_id:token\titem_id:token"
    for part, some in (("train", lines), ("valid", lines[:1]), ("test", lines[:1])):
        (folder / f"pairs.{part}.inter").write_text("\n".join([header, *some]) + "\n")


@torch.no_grad()
def vectors(model: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of SimpleX's users and items, by RecBole's own numbers, with the padding at 0."""
    model.eval()
    users = []
    for rows in torch.arange(model.n_users).split(4096):
        history = model.item_emb(model.history_item_id[rows])
        users.append(model.get_UI_aggregation(model.user_emb(rows), history, model.history_item_len[rows]))
    found = functional.normalize(torch.cat(users)), functional.normalize(model.item_emb.weight)
    model.train()
    return found[0].numpy(), found[1].numpy()


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    pairs, out = np.load(request["pairs"]), Path(request["out"])
    keep = request["keep"]
    torch.set_num_threads(request["threads"])
    write_pairs(out / "data" / "pairs", pairs["user"], pairs["item"])
    config = Config(
        model="SimpleX",
        dataset="pairs",
        config_dict={
            "data_path": str(out / "data"),
            "checkpoint_dir": str(out / "saved"),
            "benchmark_filename": ["train", "valid", "test"],
            "load_col": {"inter": ["user_id", "item_id"]},
            "use_gpu": False,
            "gpu_id": "",
            "seed": 0,
            "reproducibility": True,
            "show_progress": False,
            "state": "ERROR",
            "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "RO", "group_by": "user", "mode": "full"},
            "epochs": max(keep),
            **request["settings"],
        },
    )
    init_seed(0, True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    seconds, passed, start = {}, 0.0, time.perf_counter()
    model = get_model("SimpleX")(config, train.dataset)
    trainer = Trainer(config, model)
    places = [
        train.dataset.token2id(field, np.arange(int(pairs[many])).astype(str)[known].tolist())
        for field, many, known in (
            ("user_id", "users", np.unique(pairs["user"])),
            ("item_id", "items", np.unique(pairs["item"])),
        )
    ]
    for epoch in range(max(keep)):
        trainer._train_epoch(train, epoch, show_progress=False)
        passed += time.perf_counter() - start
        if epoch + 1 in keep:
            seconds[epoch + 1] = passed
            given = []
            for there, side, many, rows in zip(vectors(model), ("user", "item"), ("users", "items"), places):
                ours = np.full((int(pairs[many]), there.shape[1]), np.nan, np.float32)
                ours[np.unique(pairs[side])] = there[rows]
                given.append(ours)
            np.savez(out / f"{epoch + 1}.npz", users=given[0], items=given[1])
            (out / "seconds.json").write_text(json.dumps(seconds))
        start = time.perf_counter()


if __name__ == "__main__":
    main()
