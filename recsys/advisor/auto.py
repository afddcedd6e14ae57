"""`auto`: profiles the data, walks the decision tree, trains what fits, and keeps what is best.

Decides by a validation slice cut from the training part, asked as the test will ask. Models are tried in
the order of their promise while their estimates, corrected by what the earlier ones really took, fit the
budget of time and memory, with what is needed to train the chosen ones once more on all of the data. A
model that fails is told and left out. The same data under other names give the same choice.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from recsys.advisor.decision import Decision, decide
from recsys.advisor.profile import profile
from recsys.errors import CapacityError, DataError, SettingsError, in_one_line
from recsys.interactions import Interactions
from recsys.memory import free_mb
from recsys.models.blend import DEPTH, FittedBlend
from recsys.models.held_out import asked_slice, lists_of, ndcg_of
from recsys.models.retrieval import Estimate, Fitted, Progress, check_settings, silent
from recsys.models.search_space import Space
from recsys.training.blend import Weights, choose_weights
from recsys.training.retrieval_models import model_class, model_name

MOST_USERS = 20_000  # or questions of sessions, on the slice
_LISTS = 14  # of so many models, and once more stacked
FEW = 50  # fewer questions can't tell models apart
_LONG = 30.0  # seconds from which on a fit tells how fast the machine is: shorter ones compile as long


@dataclass(frozen=True, slots=True)
class Tried:
    """A model that `auto` looked at."""

    model: str
    ndcg: float = math.nan  # on the slice
    seconds: float = 0.0  # of the fit
    weight: float = 0.0  # in what was chosen
    why: str = ""  # it was not tried


@dataclass(frozen=True, slots=True)
class FittedAuto(FittedBlend):
    """What was chosen; how, is known of a fit alone and not stored."""

    decision: Decision | None = None
    tried: tuple[Tried, ...] = ()
    ndcg: float = math.nan  # of what was chosen, on the slice


@dataclass(frozen=True, slots=True)
class Auto:
    """The model, or blend, that is best on a slice of the training part."""

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {}  # it is a search itself

    budget_minutes: float = 40.0  # of all trainings
    memory_gb: float | None = None  # None = what is free
    most: int = 3  # models of a blend
    latency_ms: float = 100.0
    real_time: bool = False
    models: tuple[str, ...] = ()  # to try; none = those of the decision tree

    def __post_init__(self) -> None:
        check_settings(self, counts=("most",), positive=("budget_minutes", "memory_gb", "latency_ms"))
        if "auto" in map(model_name, self.models):
            raise SettingsError("models = auto: it can't be one of those that it tries")

    def estimate(self, data: Interactions) -> Estimate:
        """It tries what fits, so its needs are its limits; the memory, of the lists that are compared."""
        asked = min(MOST_USERS, len(data))
        return Estimate(200 + 4e-6 * 2 * _LISTS * DEPTH * asked, 60 * self.budget_minutes)

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> FittedAuto:
        """Raises DataError where no model could be trained."""
        decision = decide(profile(data), latency_ms=self.latency_ms, real_time=self.real_time)
        run = _Run(self, data, seed, progress)
        names = tuple(dict.fromkeys(map(model_name, self.models))) or decision.models
        tried = run.try_in_turn(names) if len(run.judged) < FEW else run.compare(names)
        chosen = run.chosen
        told = tuple(replace(one, weight=chosen.of.get(one.model, 0.0)) for one in tried)
        if not chosen.of:
            why = "; ".join(f"{one.model}: {one.why}" for one in tried)
            raise DataError(f"auto could train no model: {why}")
        parts = {name: run.fits.get(name) or run.train(name, data) for name in chosen.of}
        weights = np.array(list(chosen.of.values()), np.float32)
        ndcg = float(chosen.gain.mean()) if len(chosen.gain) else math.nan
        return FittedAuto(parts, weights, chosen.constant, decision, told, ndcg)


class _Run:
    """One search: its clock, its slice, and the lists of what was tried."""

    def __init__(self, auto: Auto, data: Interactions, seed: int, progress: Progress) -> None:
        self.auto, self.data, self.seed, self.progress = auto, data, seed, progress
        self.started = time.perf_counter()
        self.told = self.took = _LONG  # seconds that long fits should have taken, and did
        self.rest, self.judged = asked_slice(data, most=MOST_USERS, seed=seed)
        self.lists: dict[str, np.ndarray] = {}
        self.fits: dict[str, Fitted] = {}  # on all of the data
        self.chosen = Weights({}, 1.0, np.zeros(0))  # what compares best, or the only one that there is

    def try_in_turn(self, names: Sequence[str]) -> list[Tried]:
        """Too few questions to compare by: the first of `names` that can be trained is taken."""
        found: list[Tried] = []
        for name in names:
            tried = self._guarded(name, found, self._take)
            found.append(tried)
            if self.chosen.of:
                break
        return found

    def compare(self, names: Sequence[str]) -> list[Tried]:
        """All of `names`."""
        found: list[Tried] = []
        for name in names:
            found.append(self._guarded(name, found, self._judge))
        if self.lists:
            self._tell("choosing")
            self.chosen = choose_weights(self.lists, self.judged, most=self.auto.most, items=self.data.items)
        return found

    def train(self, name: str, data: Interactions) -> Fitted:
        def tell(share: float, doing: str) -> None:
            self._tell(f"{name}: {doing}")

        return model_class(name)().fit(data, seed=self.seed, progress=tell)

    def _guarded(self, name: str, before: Sequence[Tried], look: Callable[[str, Estimate], Tried]) -> Tried:
        """`look`, where the model fits; what it can't be trained for is told."""
        self._tell(name)
        try:
            estimate = model_class(name)().estimate(self.rest)
            if why := self._unfit(estimate, before):
                return Tried(name, why=why)
            return look(name, estimate)
        except (DataError, SettingsError, CapacityError, MemoryError) as error:
            return Tried(name, why=in_one_line(error) or "")

    def _take(self, name: str, estimate: Estimate) -> Tried:
        self.fits[name] = self.train(name, self.data)
        self.chosen = Weights({name: 1.0}, 1.0, np.zeros(0))
        return Tried(name, why=f"taken unseen: {len(self.judged)} questions can't tell models apart")

    def _judge(self, name: str, estimate: Estimate) -> Tried:
        started = time.perf_counter()
        fitted = self.train(name, self.rest)
        seconds = time.perf_counter() - started
        if estimate.seconds > _LONG:
            self.told, self.took = self.told + estimate.seconds, self.took + seconds
        self._tell(f"{name}: ranking")
        self.lists[name] = lists_of(fitted, self.judged, items=self.data.items, depth=DEPTH)
        return Tried(name, ndcg_of(self.lists[name], self.judged), seconds)

    def _unfit(self, estimate: Estimate, before: Sequence[Tried]) -> str:
        """Why a model of this estimate is not tried; nothing if it is."""
        free = 1000 * self.auto.memory_gb if self.auto.memory_gb else free_mb()
        if estimate.memory_mb > free:
            return f"about {estimate.memory_mb:,.0f} MB, and {free:,.0f} MB may be used"
        best = sorted(before, key=lambda one: -np.nan_to_num(one.ndcg))[: self.auto.most]
        again = sum(one.seconds for one in best)  # to train them on all of the data
        seconds = 2 * estimate.seconds * self.took / self.told
        left = 60 * self.auto.budget_minutes - (time.perf_counter() - self.started) - again
        if seconds > left and self.lists:  # the first is tried in any case
            return f"about {seconds / 60:.1f} minutes with a second fit, and {max(left, 0) / 60:.1f} are left"
        return ""

    def _tell(self, doing: str) -> None:
        elapsed = time.perf_counter() - self.started
        self.progress(min(1.0, elapsed / 60 / self.auto.budget_minutes), doing)
