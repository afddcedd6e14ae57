"""SASRec and GRU4Rec as retrieval models: one fit on any interactions, whatever their times mean.

Decides what an example is (each event after the orders before it; histories are cut where they exceed the
window, elsewhere in each pass; one without an order is shuffled anew), what a batch is (histories of like
length, so many events in all), and how long it trains: a number of passes by the size of the log, with a
small slice, asked as the test will ask, that says which pass was best.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import torch

from recsys.datasets.problem import Judged
from recsys.errors import SettingsError
from recsys.interactions import Asked, Interactions, Timing
from recsys.models.held_out import AT, asked_slice, lists_of, ndcg_of, spared_users
from recsys.models.retrieval import Estimate, Progress, check_settings, silent
from recsys.models.search_space import Choice, LogUniform, Space, Uniform
from recsys.models.sequence.encoder import SequenceEncoder, padded
from recsys.models.sequence.modules import Recurrent, SelfAttention, SequenceModule
from recsys.models.sequence.settings import SequenceSettings
from recsys.models.two_tower.settings import Negatives
from recsys.training.again import with_again
from recsys.training.loop import Arrays, LoopSettings, run_fit
from recsys.training.negatives import Pool, draw_pool, whole_pool
from recsys.types import Histories, ragged_index

DIMENSIONS = (64, 128)  # the second of sessions
SMALL = 500_000  # events: fewer are learned by heart without much dropout


@dataclass(frozen=True, slots=True)
class SequenceModel(SequenceSettings):
    """The settings of a sequence model, and of its fit."""

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {
        "dimensions": Choice((32, 64, 128, 256)),
        "layers": Choice((1, 2, 3)),
        "dropout": Uniform(0.1, 0.6),
        "event_dropout": Uniform(0, 0.5),
        "learning_rate": LogUniform(0.0003, 0.005),
    }
    module: ClassVar[type[SequenceModule]]

    batch: int | None = None  # events of a step; None = a 25th of the log's, from 64 to 2048
    passes: int | None = None  # over all events; None = `seen` events in all, in 6 to 60 passes
    seen: float = 3e6
    learning_rate: float | None = None  # None = .003 with cosines, .001 with inner products
    weight_decay: float = 0.0
    last_rate: float = 0.1
    warm_up: int = 200  # steps; at most a tenth of all
    patience: int = 5

    def __post_init__(self) -> None:
        SequenceSettings.__post_init__(self)
        check_settings(
            self,
            counts=("batch", "passes", "patience"),
            positive=("seen", "learning_rate"),
            not_negative=("weight_decay", "warm_up"),
            shares=("last_rate",),
        )

    def estimate(self, data: Interactions) -> Estimate:
        """Tables with their gradients, moments and copies, and the logits of a batch."""
        settled, tokens = self.settled(data), self.content and data.item_tokens is not None
        d, batch = settled.dimensions or 0, settled.batch or 1
        full = data.items <= self.full_softmax
        pool = data.items if full else min(self.popular + self.uniform, data.items)
        rows = data.items + tokens * self.token_buckets
        events = batch * self.layers * (20 * d + 4 * self.heads * self.window)
        tensors = 10 * rows * d + 5 * batch * pool + 3 * events + 2 * 256 * data.items
        memory = 4 * tensors + 100 * len(data)
        step = 1.5e-8 * batch * pool * (1 + d / 64) / 4 + 4e-9 * rows * d + 3e-9 * events
        steps = self._passes(len(data)) * (1 + len(data) / batch)
        return Estimate(300 + memory / 1e6, 1 + steps * step)

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> SequenceEncoder:
        """Events of weight 0 are left out; others weigh as targets. Raises DataError without an event."""
        task = self.task(data, seed=seed)
        run_fit(task, seed=seed, progress=progress)
        return self.finish(task)

    def task(
        self, data: Interactions, *, seed: int, start: Arrays | None = None, blank: bool = False
    ) -> "SequenceTask":
        """What the loop trains. `start` must be None: every fit begins anew."""
        assert start is None
        data = data.teaching()
        data, judged = asked_slice(data, most=spared_users(data), seed=seed)
        torch.manual_seed(seed)
        tokens = data.item_tokens if self.content else None
        settings = self.settled(data)
        module = self.module(items=data.items, tokens=tokens, settings=settings)
        return SequenceTask(module, data, judged, settings, epochs=self._passes(len(data)))

    def settled(self, data: Interactions) -> Self:
        """The same with what is left to the log.

        More vectors of unit length learn sessions better (as Gupta et al. 2019, NISER), inner products users
        of small logs; these want more dropout. Seen on slices of diginetica, Beauty and LastFM.
        """
        sessions, found = data.asked is Asked.SESSION, self
        if found.dimensions is None:
            found = replace(found, dimensions=DIMENSIONS[sessions])
        if found.temperature is None:
            found = replace(found, temperature=0.07 if sessions else 0.0)
        if found.batch is None:
            found = replace(found, batch=int(np.clip(len(data) // 25, 64, 2048)))
        if found.dropout is None:
            found = replace(found, dropout=0.5 if len(data) < SMALL else 0.2)
        if found.learning_rate is None:
            found = replace(found, learning_rate=0.003 if found.temperature else 0.001)
        return found

    def finish(self, task: "SequenceTask") -> SequenceEncoder:
        return with_again(task.exported(), task.judged)

    def _passes(self, events: int) -> int:
        return self.passes or int(np.clip(np.ceil(self.seen / max(events, 1)), 6, 60))


@dataclass(frozen=True, slots=True)
class SasRec(SequenceModel):
    """Self-attentive sequential recommendation (Kang and McAuley 2018), with a full or sampled softmax
    (as Klenitskiy and Vasilev 2023, "Turning dross into gold loss")."""

    module: ClassVar[type[SequenceModule]] = SelfAttention

    def __post_init__(self) -> None:
        SequenceModel.__post_init__(self)
        given = "" if self.dimensions else ", which the log chooses"
        for dimensions in (self.dimensions,) if self.dimensions else DIMENSIONS:
            if dimensions % self.heads:
                told = f"dimensions = {dimensions}{given}: must be a multiple of heads = {self.heads}"
                raise SettingsError(told)


@dataclass(frozen=True, slots=True)
class Gru4Rec(SequenceModel):
    """Session-based recommendation with a recurrent network (Hidasi et al. 2016)."""

    module: ClassVar[type[SequenceModule]] = Recurrent

    layers: int = 1


@dataclass(slots=True)
class SequenceTask:
    """A `Task` of the loop: all histories again and again."""

    module: SequenceModule
    data: Interactions
    judged: Judged
    settings: SequenceModel
    epochs: int
    expected: np.ndarray = field(init=False)  # float64 [V] share of each item among targets
    cumulative: np.ndarray = field(init=False)  # float64 [V] of it
    taught: np.ndarray = field(init=False)  # int64 [T] items that are targets
    pieces: Histories = field(init=False)
    weight: np.ndarray = field(init=False)  # float32 [M] of their events
    batches: list[np.ndarray] = field(init=False)  # pieces of each step

    def __post_init__(self) -> None:
        count = np.bincount(self.data.histories.item, minlength=self.data.items)
        self.expected = count / max(count.sum(), 1)
        self.cumulative, self.taught = np.cumsum(self.expected), np.flatnonzero(count)

    @property
    def loop(self) -> LoopSettings:
        settings = self.settings
        return LoopSettings(
            learning_rate=settings.learning_rate or 0.0,
            weight_decay=settings.weight_decay,
            last_rate=settings.last_rate,
            warm_up=min(settings.warm_up, self.epochs * len(self.data) // (settings.batch or 1) // 10),
            patience=settings.patience,
        )

    def begin(self, epoch: int, rng: np.random.Generator) -> int:
        # One more than is read: the last event is only asked for.
        self.pieces, self.weight = pieces(self.data, window=self.settings.window + 1, rng=rng)
        self.batches = alike(self.pieces.counts, size=self.settings.batch or 1, rng=rng)
        return len(self.batches)

    def batch(self, step: int, rng: np.random.Generator, *, rank: int, ranks: int) -> dict[str, torch.Tensor]:
        whole = self.batches[step]
        share = whole[rank::ranks]
        picked = share if len(share) else whole[:1]  # a rank without a share learns nothing, but takes part
        weight = self.weight[ragged_index(self.pieces.offsets[picked], self.pieces.counts[picked])]
        weight = weight * np.float32(len(share) > 0)
        histories = self.pieces.take(picked)
        target = histories.item
        pool = self._pool(rng)
        rows, position = np.unique(np.concatenate((target, pool.items)), return_inverse=True)
        of_target, of_pool = np.split(position, [len(target)])
        known = replace(histories, item=of_target)
        window = self.settings.window + 1
        event, counts = padded(known, window=window, start=len(rows), padding=len(rows) + 1)
        width = max(event.shape[1] - 1, 1)
        batch = {
            "rows": rows.astype(np.int64),
            "event": event[:, :width],
            "target": of_target,
            "place": ragged_index(np.arange(len(counts)) * width, counts) - within_order(histories),
            "weight": weight,
            "pool": of_pool,
            "log_expected": pool.log_expected,
            "own": pool.places(target),
            **self.module.content_of(rows),
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _pool(self, rng: np.random.Generator) -> Pool:
        settings, taught = self.settings, self.taught
        if len(taught) <= settings.full_softmax:
            return whole_pool(taught)
        # Not the targets of the batch: those of the same history would be there for certain, and not as told.
        popular = np.searchsorted(self.cumulative, rng.random(settings.popular))
        negatives = Negatives(in_batch=settings.popular, uniform=settings.uniform)
        return draw_pool(
            np.minimum(popular, taught[-1]),
            settings=negatives,
            taught=taught,
            expected=self.expected,
            rng=rng,
        )

    def exported(self) -> SequenceEncoder:
        return self.module.export(self.expected > 0)

    def validate(self) -> float:
        """NDCG@10 of what was held out; NaN where nothing was."""
        if not len(self.judged):
            return float("nan")
        return ndcg_of(lists_of(self.exported(), self.judged, items=self.data.items, depth=AT), self.judged)


def pieces(data: Interactions, *, window: int, rng: np.random.Generator) -> tuple[Histories, np.ndarray]:
    """Histories of at most `window` events that hold each event of `data` once, and the events' weights
    float32 [M]. Longer ones are cut, the first cut by chance; those without an order are shuffled."""
    log, weight = data.histories, data.weights
    if data.timing is Timing.NONE:
        shuffled = np.lexsort((rng.random(len(log.item)), log.request))
        log, weight = replace(log, item=log.item[shuffled]), weight[shuffled]
    counts = log.counts.astype(np.int64)
    first = np.where(counts > window, rng.integers(1, window + 1, len(counts)), counts)
    number = (counts > 0) + -(-(counts - first) // window)
    owner = np.repeat(np.arange(len(counts)), number)
    place = ragged_index(np.zeros_like(number), number)
    ends = log.offsets[owner] + np.minimum(first[owner] + place * window, counts[owner])
    return replace(log, offsets=np.append(0, ends).astype(np.int32)), weight


def within_order(histories: Histories) -> np.ndarray:
    """How many events of the same order stand before each event, int64 [M]: what comes together is asked for
    where the order before it ended."""
    place, order = np.arange(len(histories.item)), histories.order
    begins = np.append(True, order[1:] != order[:-1])[: len(order)]
    begins[histories.offsets[:-1][histories.counts > 0]] = True
    return place - np.maximum.accumulate(np.where(begins, place, 0))


def alike(counts: np.ndarray, *, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of histories with `counts` [P] events, each about `size` in all and at least one history, of
    like length, so that little is padded; in random order."""
    by_length = np.argsort(counts + 2 * rng.random(len(counts)))
    events = np.cumsum(counts[by_length])
    cuts = np.flatnonzero(np.diff((events - 1) // size)) + 1
    batches = np.split(by_length, cuts)
    return [batches[number] for number in rng.permutation(len(batches))]
