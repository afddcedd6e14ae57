"""The two-tower as a retrieval model: one fit on any interactions, whatever their times mean.

Decides by `Timing` what an example is and how a history is pooled; how long it trains (a number of
passes, bounded in steps; it stops early on a slice of the training events, and goes back to the best
epoch); and what it starts from: the factors of the interaction matrix, or an earlier fit.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch

from recsys.datasets.problem import Judged, hold_out
from recsys.errors import DataError, SettingsError
from recsys.hashing import stable_hashes
from recsys.interactions import Interactions, Timing
from recsys.models.held_out import spared_users
from recsys.models.retrieval import Arrays, Estimate, Progress, check_settings, silent
from recsys.models.search_space import Choice, LogUniform, Space, Uniform
from recsys.models.spectral import item_factors
from recsys.models.two_tower.fitted import FittedTwoTower, KnownUsers, attributes_of
from recsys.models.two_tower.module import TwoTower, array_of, folded
from recsys.models.two_tower.settings import Negatives, TwoTowerSettings
from recsys.training.examples import Examples, LeftOut, NextOrders, Together, orders_of, spread
from recsys.training.loop import LoopSettings, run_fit
from recsys.training.two_tower import Batch, Batches, UserSide
from recsys.training.warm_start import start_from

USER_SALT = "user-id"  # frozen: a warm start depends on it


@dataclass(frozen=True, slots=True)
class TwoTowerModel(TwoTowerSettings):
    """The settings of the towers, and of their fit."""

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {
        "dimensions": Choice((64, 128, 256)),
        "temperature": LogUniform(0.03, 0.3),
        "popularity": Uniform(0, 0.8),
        "id_dropout": Uniform(0, 0.3),
        "learning_rate": LogUniform(0.001, 0.02),
    }

    dimensions: int = 256
    attention: bool = False
    context: bool = True  # under a clock
    in_batch: int = 0  # negatives, see `Negatives`
    uniform: int = 8192
    content: bool = True  # of items and users, where there is any
    half_lives_events: tuple[float, ...] = (1.0, 8.0, float("inf"))  # of histories with an order but no clock
    examples: Literal["auto", "next", "left_out", "both"] = "auto"  # see `recsys.training.examples`
    left_out: float | None = None  # share of a history; None = .8 of one without an order, else .5
    popularity: float | None = None  # None = .3 for logs without an order, else 0
    example_half_life_days: float = float("inf")  # of next orders
    repeat_share: float = 0.2  # chance that an item taken before is a target, where no repeats are asked for
    targets: int = 8  # of an order
    max_history: int = 400
    spectral: bool = True
    batch: int = 1024
    most_events: int = 65_536  # of histories in a batch, on average: long ones make it smaller
    passes: float = 40.0  # over all examples
    most_steps: int = 4000
    epochs: int = 20  # of these steps: how often it is validated
    learning_rate: float = 0.005
    weight_decay: float = 0.0
    last_rate: float = 0.05
    patience: int = 6

    def __post_init__(self) -> None:
        TwoTowerSettings.__post_init__(self)
        check_settings(
            self,
            positive=(
                *("targets", "max_history", "batch", "most_events", "passes", "most_steps", "epochs"),
                *("learning_rate", "patience"),
            ),
            endless=("half_lives_events", "example_half_life_days"),
            not_negative=("in_batch", "uniform", "weight_decay"),
            shares=("left_out", "repeat_share", "last_rate"),
        )
        if not self.half_lives_events and not self.attention:
            raise SettingsError("half_lives_events is empty and attention off: nothing would pool a history")
        if not self.in_batch + self.uniform:
            raise SettingsError("in_batch and uniform are both 0: positives need negatives to be told from")

    def estimate(self, data: Interactions) -> Estimate:
        """Tables with their gradients, moments and copies, and the logits of a batch; the seconds of half of
        the epochs, after which the slice has said "enough" as a rule."""
        d, tokens = self.dimensions, self.content and data.item_tokens is not None
        examples, length = self._expected(data)
        batch, epochs, steps = self._schedule(examples, length)
        rows = data.items + self.user_buckets + tokens * self.token_buckets
        logits = batch * min(self.in_batch + self.uniform, data.items)
        events = batch * (1 + length) * d
        validated = spared_users(data) * data.items
        memory = 4 * (10 * rows * d + 6 * logits + 8 * events + 2 * 256 * data.items) + 100 * len(data)
        step = (1e-8 + 1.3e-10 * d) * logits + 4e-9 * rows * d + 5e-9 * events
        start = (3e-9 * d * data.items + 2e-8 * len(data)) * d if self.spectral else 0.0
        return Estimate(memory / 1e6, start + epochs / 2 * (steps * step + 1e-8 * validated))

    def fit(
        self, data: Interactions, *, seed: int, progress: Progress = silent, start: Arrays | None = None
    ) -> FittedTwoTower:
        """`start` are the arrays of an earlier fit with the same settings: what is new since begins anew.

        Events of weight 0 are left out; those of a pair given twice count each. `Interactions.weight` also
        takes what a position's bias asks for: an event's weight times the inverse propensity of its place.
        Raises DataError without an event, SettingsError where `start` has other shapes.
        """
        task = self.task(data, seed=seed, start=start)
        run_fit(task, seed=seed, progress=progress)
        return self.finish(task)

    def task(
        self, data: Interactions, *, seed: int, start: Arrays | None = None, blank: bool = False
    ) -> "TwoTowerTask":
        """What the loop trains; `blank` = the caller sets the module's parameters, so that nothing need be
        computed for its start."""
        if data.weight is not None:
            data = data.where(data.weight > 0)
        if not len(data):
            raise DataError("no interaction of a weight above 0: the two-tower has nothing to learn from")
        if not self.content:
            data = replace(data, item_tokens=None, user_tokens=None)
        kind = self._kind(data.timing)
        judged = None
        if asked := spared_users(data):
            data, judged = hold_out(data, users=asked, seed=seed, newest=kind == "next")
        examples = self._examples(data, kind=kind)
        torch.manual_seed(seed)
        module = TwoTower(
            items=data.items,
            tokens=data.item_tokens,
            settings=self._settings(data.timing),
            attributes=data.user_tokens is not None,
        )
        if start is not None:
            start_from(module, start)
        elif self.spectral and not blank:
            factors = item_factors(data, dimensions=self.dimensions, seed=seed)
            with torch.no_grad():  # of the length that a random start has
                module.id.weight.copy_(torch.from_numpy(factors * (0.1 * np.sqrt(len(factors)))))
        users = UserSide(
            bucket=self._buckets(data),
            attributes=None if data.user_tokens is None else folded(data.user_tokens, self.attribute_buckets),
        )
        taught = np.bincount(data.histories.item, minlength=data.items) > 0
        batches = Batches(module, examples, Negatives(self.in_batch, self.uniform), taught, users)
        batch, epochs, steps = self._schedule(int((examples.chance > 0).sum()), examples.length())
        return TwoTowerTask(module, batches, data, judged, self, batch, epochs, steps)

    def _kind(self, timing: Timing) -> str:
        if self.examples != "auto":
            return self.examples
        return {Timing.NONE: "left_out", Timing.SEQUENCE: "next", Timing.CLOCK: "both"}[timing]

    def _expected(self, data: Interactions) -> tuple[int, float]:
        """How many examples there will be, and events of one on average, by counting alone."""
        log, kind = data.where(data.weights > 0).histories, self._kind(data.timing)
        user, some = log.request, log.counts > 0
        begins = np.append(True, (user[1:] != user[:-1]) | (log.order[1:] != log.order[:-1]))[: len(user)]
        orders = np.bincount(user[begins], minlength=len(log)) * (kind != "left_out")
        users = some * (kind != "next")
        events = users * np.minimum(log.counts, self.max_history)
        before = orders * np.minimum(log.counts / 2, self.max_history)
        lengths = [found.sum() / max(of.sum(), 1) for found, of in ((events, users), (before, orders))]
        return int(users.sum() + orders.sum()), float(sum(lengths)) / (2 if kind == "both" else 1)

    def _schedule(self, examples: int, events: float) -> tuple[int, int, int]:
        """Size of a batch, epochs, and steps of one, for so many examples of so many events on average."""
        batch = int(min(self.batch, max(1, self.most_events / max(events, 1))))
        steps = int(max(1, min(self.most_steps, np.ceil(self.passes * examples / batch))))
        epochs = min(self.epochs, steps)
        return batch, epochs, -(-steps // epochs)

    def _examples(self, data: Interactions, *, kind: str) -> Examples:
        usual = 0.8 if data.timing is Timing.NONE else 0.5
        left_out = LeftOut.of(
            data,
            share=usual if self.left_out is None else self.left_out,
            max_history=self.max_history,
            half_life_days=self.example_half_life_days,
        )
        if kind == "left_out":
            return left_out
        following = NextOrders.until(
            None,
            interactions=data,
            orders=orders_of(data),
            half_life_days=self.example_half_life_days,
            repeat_share=1.0 if data.repeats else self.repeat_share,
            targets=self.targets,
            max_history=self.max_history,
            hide_history=not data.repeats,
        )
        return following if kind == "next" else Together((following, left_out))

    def finish(self, task: "TwoTowerTask") -> FittedTwoTower:
        """The arrays of what the module has become."""
        module, taught, users = task.module, task.batches.taught, task.batches.users
        described = np.zeros(task.data.items, bool)
        if task.data.item_tokens is not None:
            described = np.diff(task.data.item_tokens.offsets) > 0
        vectors = module.item_vectors(task.data.items, taught)
        vectors[~taught & ~described] = np.nan
        none = np.zeros((0, self.dimensions), np.float32)
        offsets, ids = attributes_of(users.attributes, self.attribute_buckets)
        return FittedTwoTower(
            vectors,
            KnownUsers(
                encoder=module.export(task.data.items, taught),
                user_id=array_of(module.user_id.weight) if users.bucket is not None else none,
                user_bucket=np.zeros(0, np.int32) if users.bucket is None else users.bucket.astype(np.int32),
                attribute=none if users.attributes is None else array_of(module.attribute.weight),
                attribute_offsets=offsets,
                attribute_id=ids,
            ),
        )

    def _settings(self, timing: Timing) -> TwoTowerSettings:
        if timing is Timing.CLOCK:
            return self
        if timing is Timing.SEQUENCE:
            return replace(self, half_lives_days=self.half_lives_events, context=False)
        popularity = 0.3 if self.popularity is None else self.popularity
        return replace(self, half_lives_days=(float("inf"),), places=0, context=False, popularity=popularity)

    def _buckets(self, data: Interactions) -> np.ndarray | None:
        if not self.user_buckets:
            return None
        hashed = stable_hashes((str(u) for u in data.user_ids), salt=USER_SALT)
        return (hashed % np.uint64(self.user_buckets)).astype(np.int64)


@dataclass(slots=True)
class TwoTowerTask:
    """A `Task` of the loop: all examples again and again, in epochs of the same number of steps."""

    module: TwoTower
    batches: Batches
    data: Interactions
    judged: Judged | None
    settings: TwoTowerModel
    size: int  # of a batch
    epochs: int
    steps: int  # of an epoch
    order: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def loop(self) -> LoopSettings:
        settings = self.settings
        return LoopSettings(
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            last_rate=settings.last_rate,
            patience=settings.patience,
        )

    def begin(self, epoch: int, rng: np.random.Generator) -> int:
        self.order = spread(self.batches.examples.chance, self.steps * self.size, rng)
        return self.steps

    def batch(self, step: int, rng: np.random.Generator, *, rank: int, ranks: int) -> Batch:
        picked = self.order[step * self.size : (step + 1) * self.size]
        return self.batches.of(picked[rank::ranks], rng)

    def validate(self) -> float:
        """Mean of 1 / log2(1 + rank) over held-out events: NDCG without a cut, which sees small steps."""
        if self.judged is None:
            return float("nan")
        fitted, values = self.settings.finish(self), []
        for start in range(0, len(self.judged), 256):
            part = self.judged.take(np.arange(start, min(start + 256, len(self.judged))))
            scores = fitted.score(part.queries)
            wanted = scores[np.arange(len(part)), part.target][:, None].copy()
            scores[np.repeat(np.arange(len(part)), np.diff(part.masked_offsets)), part.masked] = -np.inf
            rank = 1 + (scores > wanted).sum(1) + 0.5 * ((scores == wanted).sum(1) - 1)
            values.append(1 / np.log2(1 + np.maximum(rank, 1)))
        return float(np.concatenate(values).mean())
