"""The loop: resumes exactly, stops early, and goes back to the best epoch; two ranks do it together."""

import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

from recsys.errors import CapacityError
from recsys.training.loop import RESUME, LoopSettings, best_of, restore, run_fit, train


class Line(nn.Module):
    """y = w x + b with dropout, so that torch's own chance matters too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.line = nn.Linear(3, 1)

    def forward(self, *, x: Tensor, y: Tensor) -> Tensor:
        return ((self.line(nn.functional.dropout(x, 0.05, self.training))[:, 0] - y) ** 2).mean()


@dataclass
class Fit:
    """A `Task`: noisy points of a line; `values` are what the validations say."""

    values: list[float] = field(default_factory=list)
    epochs: int = 5
    module: nn.Module = field(default_factory=Line)

    def begin(self, epoch: int, rng: np.random.Generator) -> int:
        self.epoch = epoch
        self.x = rng.normal(size=(8 * 16, 3)).astype(np.float32)
        return 8

    def batch(self, step: int, rng: np.random.Generator, *, rank: int, ranks: int) -> dict[str, Tensor]:
        x = self.x[step * 16 : (step + 1) * 16][rank::ranks]
        noise = rng.normal(size=len(x)) * 0.1
        y = x @ np.array([1.0, -2.0, 0.5]) + 3 + noise
        return {"x": torch.from_numpy(x), "y": torch.from_numpy(y.astype(np.float32))}

    def validate(self) -> float:
        return self.values[self.epoch] if self.values else float("nan")


SETTINGS = LoopSettings(learning_rate=0.05, patience=2)


def weights(task: Fit) -> np.ndarray:
    return task.module.line.weight.detach().numpy().copy()


def run(task: Fit, **arguments) -> list[dict[str, np.ndarray]]:
    return list(train(task, settings=SETTINGS, seed=3, **arguments))


def test_it_learns_and_tells_how_far_it_is():
    told = []
    task = Fit(epochs=20)
    checkpoints = run(task, progress=lambda share, loss: told.append((share, loss)))
    assert len(checkpoints) == 20
    np.testing.assert_allclose(weights(task), [[1.0, -2.0, 0.5]], atol=0.3)
    assert [int(c["epoch"]) for c in checkpoints] == list(range(20))
    assert checkpoints[-1]["loss"] < checkpoints[0]["loss"] / 2
    assert len(told) == 160
    assert told[0][0] == pytest.approx(1 / 160)
    assert told[-1][0] == 1


def test_a_resumed_run_ends_as_one_that_was_never_interrupted():
    whole = Fit(values=[1, 3, 2, 4, 3.0])
    checkpoints = run(whole)
    for done in (0, 2, 3):
        rest = Fit(values=[1, 3, 2, 4, 3.0])
        with torch.no_grad():
            rest.module.line.weight.fill_(99)  # a fresh process knows nothing
        again = run(rest, start=checkpoints[done])
        assert len(again) == 4 - done
        np.testing.assert_array_equal(weights(rest), weights(whole))
        for name, array in checkpoints[-1].items():
            np.testing.assert_array_equal(again[-1][name], array, err_msg=name)


def test_a_finished_run_that_is_resumed_has_nothing_left_to_do():
    checkpoints = run(Fit(values=[1, 3, 2, 4, 3.0]))
    task = Fit(values=[1, 3, 2, 4, 3.0])
    assert run(task, start=checkpoints[-1]) == []
    np.testing.assert_array_equal(weights(task), best_of(checkpoints[-1])["line.weight"])


def test_it_stops_when_nothing_gets_better_and_goes_back_to_the_best():
    task = Fit(values=[1, 5, 4, 4.5, 9])
    checkpoints = run(task)
    assert [float(c["value"]) for c in checkpoints] == [1, 5, 4, 4.5]  # never comes to the 9
    np.testing.assert_array_equal(weights(task), checkpoints[1][RESUME + "model.line.weight"])
    other = Fit()
    restore(other.module, best_of(checkpoints[-1]))
    np.testing.assert_array_equal(weights(other), weights(task))


def test_without_a_validation_the_last_epoch_is_kept():
    task = Fit()
    checkpoints = run(task)
    assert len(checkpoints) == 5
    np.testing.assert_array_equal(best_of(checkpoints[-1])["line.weight"], weights(task))


def test_the_same_seed_gives_the_same_and_another_does_not():
    first, second, other = Fit(), Fit(), Fit()
    run(first)
    run(second)
    list(train(other, settings=SETTINGS, seed=4))
    np.testing.assert_array_equal(weights(first), weights(second))
    assert not np.array_equal(weights(first), weights(other))


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    task = Fit(values=[[1, 5, 4, 4.5, 9], [5, 4, 3, 2, 1.0]][rank])
    if rank:
        with torch.no_grad():
            task.module.line.weight.fill_(99)
    values = [float(checkpoint["value"]) for checkpoint in run(task)]
    np.savez(Path(folder) / f"{rank}.npz", weight=weights(task), values=values)
    distributed.destroy_process_group()


def test_ranks_that_see_other_values_stop_together(tmp_path):
    """Each decided by its own validation: rank 1 stopped an epoch before rank 0, which then waited for a
    gradient that never came. And each began with the parameters that it had computed itself."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_rank, args=(rank, str(tmp_path)), daemon=True) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert first["values"].tolist() == second["values"].tolist() == [1, 5, 4, 4.5]
    np.testing.assert_array_equal(first["weight"], second["weight"])
    assert np.abs(first["weight"]).max() < 9


def test_a_full_gpu_is_an_error_of_ours():
    task = Fit()
    task.loop = SETTINGS

    def full(*args: object, **kwargs: object) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    task.batch = full
    with pytest.raises(CapacityError, match=r"Tried to allocate 2 GiB.*; give a smaller batch"):
        run_fit(task, seed=0, progress=lambda share, doing: None)
