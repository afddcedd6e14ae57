"""The training loop of all torch models: plain torch, alone or on each rank of a group. No Ray.

Decides what every such training shares: AdamW with a falling rate, gradients averaged over the ranks of
an initialized `torch.distributed` group, of which rank 0 has the start and the validation for all, early
stopping that goes back to the best epoch, bfloat16 and compilation where there is a GPU, and a checkpoint
after each epoch. Chance depends on seed, epoch and rank alone, so that a run resumed from a checkpoint
ends as one that was never interrupted. What a model is, and what it learns from, is a `Task`'s to say.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, distributed, nn

from recsys.errors import CapacityError

Arrays = Mapping[str, np.ndarray]
RESUME = "resume."  # entries of a checkpoint that only the newest needs
_MODEL, _BEST, _MOMENTS = RESUME + "model.", RESUME + "best.", RESUME + "moments."


class Task(Protocol):
    """A model and its examples. Every rank holds the same, and draws alike until `batch`."""

    @property
    def module(self) -> nn.Module:
        """module(**batch) is the mean loss of a batch."""
        ...

    @property
    def epochs(self) -> int: ...

    def begin(self, epoch: int, rng: np.random.Generator) -> int:
        """Makes ready for an epoch, and says how many steps it has; `rng` is alike on all ranks."""
        ...

    def batch(self, step: int, rng: np.random.Generator, *, rank: int, ranks: int) -> dict[str, Tensor]:
        """This rank's share of one batch; `rng` is its own."""
        ...

    def validate(self) -> float:
        """How good the module is now; higher is better, NaN = can't be told (then nothing stops early).
        Asked on rank 0 alone."""
        ...


@dataclass(frozen=True, slots=True)
class LoopSettings:
    learning_rate: float = 0.005
    weight_decay: float = 0.0
    last_rate: float = 0.1  # share of the learning rate that is left at the end
    warm_up: int = 0  # steps in which it rises from 0
    every_epoch_anew: bool = False  # the rate falls within each epoch, not over all of them
    patience: int = 5  # epochs without a better validation before it stops


def train(
    task: Task,
    *,
    settings: LoopSettings,
    seed: int,
    start: Arrays | None = None,
    progress: Callable[[float, float], None] = lambda share, loss: None,
) -> Iterator[dict[str, np.ndarray]]:
    """Trains `task.module`; yields a checkpoint after each epoch, and leaves the module as it was best.

    A checkpoint has `epoch`, `loss` (mean of its last 20 steps) and `value` (of the validation); given as
    `start` it is where training goes on. `progress(share, loss)` is called after each step.
    """
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if _parallel() else (0, 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = task.module.to(device)
    if device.type == "cuda":
        module.compile(dynamic=True)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    state = _Progress() if start is None else _resume(start, module, optimizer)
    if ranks > 1:  # other processors may compute other last bits, or turn a singular vector around
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, 0)
    for epoch in range(state.epoch + 1, task.epochs):
        if state.waited >= settings.patience:
            break
        torch.manual_seed(int(_chance(seed, epoch, rank + 1).integers(2**62)))
        own = _chance(seed, epoch, rank + 1)
        steps = task.begin(epoch, _chance(seed, epoch, 0))
        losses = []
        module.train()
        for step in range(steps):
            done = step / steps if settings.every_epoch_anew else (epoch + step / steps) / task.epochs
            rate = settings.learning_rate * (1 - (1 - settings.last_rate) * done)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (epoch * steps + step + 1) / max(settings.warm_up, 1))
            batch = {k: v.to(device) for k, v in task.batch(step, own, rank=rank, ranks=ranks).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = module(**batch)
            optimizer.zero_grad()
            loss.backward()
            if ranks > 1:
                _average_gradients(module, ranks)
            optimizer.step()
            losses.append(float(loss.detach()))
            progress((epoch + (step + 1) / steps) / task.epochs, losses[-1])
        module.eval()
        value = torch.tensor([task.validate() if rank == 0 else 0.0], dtype=torch.float64, device=device)
        if ranks > 1:  # if each told for itself, a last bit could make one stop where others wait for it
            distributed.broadcast(value, 0)
        state = state.after(epoch, loss=float(np.mean(losses[-20:])), value=float(value), module=module)
        yield _checkpoint(state, module, optimizer)
    if state.best:
        restore(module, state.best)


class FitTask(Task, Protocol):
    """A task that says how it is trained: the whole of a model's fit."""

    @property
    def loop(self) -> LoopSettings: ...


def run_fit(task: FitTask, *, seed: int, progress: Callable[[float, str], None]) -> None:
    """Trains `task` to its end, here. Raises CapacityError where a GPU's memory is not enough."""

    def tell(share: float, loss: float) -> None:
        progress(share, f"loss {loss:.3f}")

    try:
        for _ in train(task, settings=task.loop, seed=seed, progress=tell):
            pass
    except torch.OutOfMemoryError as error:
        told = str(error).splitlines()[0]
        raise CapacityError(f"{told}; give a smaller batch or fewer dimensions") from error


def best_of(checkpoint: Arrays) -> dict[str, np.ndarray]:
    """The parameters of the best epoch so far; of the newest if none could be told."""
    best = _part(checkpoint, _BEST)
    return best or _part(checkpoint, _MODEL)


def restore(module: nn.Module, parameters: Arrays) -> None:
    """Sets what `best_of` gave."""
    module.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in parameters.items()})


@dataclass(frozen=True, slots=True)
class _Progress:
    epoch: int = -1  # the last one that is done
    loss: float = float("nan")
    value: float = float("nan")
    best_value: float = -float("inf")
    waited: int = 0  # epochs since the best
    best: Mapping[str, np.ndarray] | None = None  # parameters; None = no value yet

    def after(self, epoch: int, *, loss: float, value: float, module: nn.Module) -> "_Progress":
        if np.isnan(value):
            return _Progress(epoch, loss, value)
        if value > self.best_value:
            return _Progress(epoch, loss, value, value, 0, _arrays(module))
        return _Progress(epoch, loss, value, self.best_value, self.waited + 1, self.best)


def _checkpoint(
    state: _Progress, module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, np.ndarray]:
    found = {
        "epoch": np.int64(state.epoch),
        "loss": np.float64(state.loss),
        "value": np.float64(state.value),
        RESUME + "best_value": np.float64(state.best_value),
        RESUME + "waited": np.int64(state.waited),
    }
    arrays = {name: np.asarray(value) for name, value in found.items()}
    arrays |= {_MODEL + name: array for name, array in _arrays(module).items()}
    arrays |= {_BEST + name: array for name, array in (state.best or {}).items()}
    for number, moments in optimizer.state_dict()["state"].items():
        arrays |= {f"{_MOMENTS}{number}.{name}": t.cpu().numpy().copy() for name, t in moments.items()}
    return arrays


def _resume(start: Arrays, module: nn.Module, optimizer: torch.optim.Optimizer) -> _Progress:
    restore(module, _part(start, _MODEL))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, array in _part(start, _MOMENTS).items():
        number, _, name = key.partition(".")
        moments.setdefault(int(number), {})[name] = torch.from_numpy(np.array(array))
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return _Progress(
        epoch=int(start["epoch"]),
        loss=float(start["loss"]),
        value=float(start["value"]),
        best_value=float(start[RESUME + "best_value"]),
        waited=int(start[RESUME + "waited"]),
        best=_part(start, _BEST) or None,
    )


def _part(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def _arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


def _chance(*of: int) -> np.random.Generator:
    return np.random.default_rng(of)


def _parallel() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _average_gradients(module: nn.Module, ranks: int) -> None:
    """One all-reduce of all gradients, flattened; a parameter that this rank's share left out counts 0."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    distributed.all_reduce(flat)
    flat /= ranks
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
