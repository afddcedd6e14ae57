"""A model of RecBole, one run; started by benchmarks/training.py, in an environment of its own.

    python recbole_models.py REQUEST.json

As implicit_models.py: pairs in, in the order of each user's events, vectors after each epoch of `keep` and
the seconds of training out. An epoch is one of RecBole's trainer, with its sampling of negatives, or with a
sample for each prefix of a sequence. The first epoch's seconds have the making of the model in them, not
the reading.
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


WINDOW = 50  # newest events that a sequential model reads
SEQUENTIAL = {
    "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
    "alias_of_item_id": ["item_id_list"],
    "MAX_ITEM_LIST_LENGTH": WINDOW,
    "train_neg_sample_args": None,
}


def write_pairs(folder: Path, user: np.ndarray, item: np.ndarray) -> None:
    """The data set `pairs` as RecBole reads it."""
    lines = [f"{u}\t{i}" for u, i in zip(user.tolist(), item.tolist())]
    _write(folder, "user_id:token\titem_id:token", lines)


def write_prefixes(folder: Path, user: np.ndarray, item: np.ndarray) -> None:
    """The same as what came before each event, and the event."""
    lines, texts = [], item.astype(str).tolist()
    start = 0
    for place in range(1, len(user)):
        if user[place] != user[place - 1]:
            start = place
            continue
        before = " ".join(texts[max(start, place - WINDOW) : place])
        lines.append(f"{user[place]}\t{before}\t{texts[place]}")
    _write(folder, "user_id:token\titem_id_list:token_seq\titem_id:token", lines)


def _write(folder: Path, header: str, lines: list[str]) -> None:
    """What it validates and tests on is of no interest."""
    folder.mkdir(parents=True)
    for part, some in (("train", lines), ("valid", lines[:1]), ("test", lines[:1])):
        (folder / f"pairs.{part}.inter").write_text("\n".join([header, *some]) + "\n")


@torch.no_grad()
def simplex_vectors(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of users and items, by RecBole's own numbers, with the padding at 0."""
    users = []
    for rows in torch.arange(model.n_users).split(4096):
        history = model.item_emb(model.history_item_id[rows])
        users.append(model.get_UI_aggregation(model.user_emb(rows), history, model.history_item_len[rows]))
    return functional.normalize(torch.cat(users)), functional.normalize(model.item_emb.weight)


@torch.no_grad()
def sequence_vectors(
    model: torch.nn.Module, sequences: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs for whole sequences, by user, and the items' vectors; the same numbers."""
    users = [model.forward(*part) for part in zip(*(of.split(1024) for of in sequences))]
    return torch.cat(users), model.item_embedding.weight.detach()


def sequences_of(dataset: object, user: np.ndarray, item: np.ndarray, users: np.ndarray) -> tuple:
    """The newest events of each of `users`, by RecBole's numbers [U, WINDOW], and how many there are [U]."""
    number = np.asarray(dataset.token2id("item_id", item.astype(str).tolist()))
    found = np.zeros((len(users), WINDOW), np.int64)
    ends = np.searchsorted(user, users, side="right")
    counts = np.minimum(ends - np.searchsorted(user, users), WINDOW)
    for row, (end, count) in enumerate(zip(ends, counts)):
        found[row, :count] = number[end - count : end]
    return torch.from_numpy(found), torch.from_numpy(counts)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    pairs, out = np.load(request["pairs"]), Path(request["out"])
    keep, name = request["keep"], request["model"]
    torch.set_num_threads(request["threads"])
    sequential = name != "SimpleX"
    (write_prefixes if sequential else write_pairs)(out / "data" / "pairs", pairs["user"], pairs["item"])
    config = Config(
        model=name,
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
            "eval_args": {
                "split": {"RS": [1, 0, 0]},
                "order": "TO" if sequential else "RO",
                "group_by": "user",
                "mode": "full",
            },
            "epochs": max(keep),
            **(SEQUENTIAL if sequential else {}),
            **request["settings"],
        },
    )
    init_seed(0, True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    seconds, passed, start = {}, 0.0, time.perf_counter()
    model = get_model(name)(config, train.dataset)
    trainer = Trainer(config, model)
    known = {side: np.unique(pairs[side]) for side in ("user", "item")}
    if sequential:
        # Who has one event is no sample; an item that is no target and in no prefix has no number.
        number = train.dataset.field2token_id["item_id"]
        known["item"] = known["item"][[str(i) in number for i in known["item"].tolist()]]
        some = np.isin(pairs["item"], known["item"])
        sequences = sequences_of(train.dataset, pairs["user"][some], pairs["item"][some], known["user"])
    for epoch in range(max(keep)):
        trainer._train_epoch(train, epoch, show_progress=False)
        passed += time.perf_counter() - start
        if epoch + 1 in keep:
            seconds[epoch + 1] = passed
            model.eval()
            users, items = sequence_vectors(model, sequences) if sequential else simplex_vectors(model)
            model.train()
            rows = train.dataset.token2id("item_id", known["item"].astype(str).tolist())
            if not sequential:
                users = users[train.dataset.token2id("user_id", known["user"].astype(str).tolist())]
            given = {"users": users.numpy(), "items": items.numpy()[rows]}
            for side, found in given.items():
                ours = np.full((int(pairs[side]), found.shape[1]), np.nan, np.float32)
                ours[known[side.removesuffix("s")]] = found
                given[side] = ours
            np.savez(out / f"{epoch + 1}.npz", **given)
            (out / "seconds.json").write_text(json.dumps(seconds))
        start = time.perf_counter()


if __name__ == "__main__":
    main()
