"""The two-tower's training: its batches, and the request path's run forwards through time.

`Batches` makes batches of drawn examples for the loop. `train_two_tower` is one such training whose
epochs end at cutoffs: a later cutoff goes on from the earlier one instead of starting anew, recent
orders are favored, and a snapshot has seen no event at or after its cutoff. No Ray.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from recsys.features.histories import histories_at
from recsys.features.views import USER_FEATURES, user_features
from recsys.interactions import Interactions, Tokens
from recsys.models.two_tower.module import TwoTower
from recsys.models.two_tower.settings import Negatives, TowerSnapshot, TwoTowerTraining
from recsys.models.two_tower.user_encoder import clock, places, pooling_weights, standardize
from recsys.training.examples import Drawn, Examples, NextOrders, Orders, orders_of, spread
from recsys.training.loop import LoopSettings, train
from recsys.training.negatives import draw_pool
from recsys.types import ragged_index

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class UserSide:
    """What is known of U users beside their histories; None = nothing of that kind."""

    bucket: np.ndarray | None = None  # int64 [U] of the hashed id
    attributes: Tokens | None = None  # folded


@dataclass(slots=True)
class Batches:
    """Batches of one set of examples for one model; `features` float32 [E, F] are the examples' own."""

    model: TwoTower
    examples: Examples
    negatives: Negatives
    taught: np.ndarray  # bool [V] items that may have a say: the id of others stays out
    users: UserSide = field(default_factory=UserSide)
    features: np.ndarray | None = None
    expected: np.ndarray = field(init=False)  # float64 [V] share of each item among targets
    log_share: np.ndarray = field(init=False)  # float32 [V] its log; of what is no target, of the rarest

    def __post_init__(self) -> None:
        self.expected = self.examples.expected(len(self.taught))
        rarest = self.expected[self.expected > 0].min(initial=1.0)
        self.log_share = np.log(np.maximum(self.expected, rarest)).astype(np.float32)

    def of(self, picked: np.ndarray, rng: np.random.Generator) -> Batch:
        """One batch of the examples `picked` [b], as `TwoTower.forward` takes it."""
        settings = self.model.settings
        drawn = self.examples.draw(picked, rng)
        pool = draw_pool(
            drawn.target,
            settings=self.negatives,
            taught=np.flatnonzero(self.taught),
            expected=self.expected,
            rng=rng,
        )
        histories = drawn.histories
        rows, position = np.unique(
            np.concatenate((histories.item, drawn.target, pool.items)), return_inverse=True
        )
        event, target, in_pool = np.split(position, np.cumsum((len(histories.item), len(drawn.target))))
        keep = (rng.random(len(rows)) >= settings.id_dropout) & self.taught[rows]
        if self.model.tokens is None:
            keep[:] = True  # an item is its id, and nothing else
        features = np.zeros((len(picked), 0), np.float32)
        if self.features is not None:
            features = standardize(
                self.features[drawn.example], mean=self.model.feature_mean, scale=self.model.feature_scale
            )
        batch = {
            "rows": rows.astype(np.int64),
            "keep_id": keep.astype(np.float32),
            "event": event,
            "event_owner": histories.request,
            "event_offsets": histories.offsets[:-1].astype(np.int64),
            "place": places(histories),
            "weights": pooling_weights(histories, now=drawn.now, half_lives_days=settings.half_lives_days),
            "features": features,
            "target": target,
            "owner": drawn.owner,
            "target_weight": drawn.weight,
            "pool": in_pool,
            "log_expected": pool.log_expected,
            "log_share": self.log_share[rows],
            "masked": pool.masked(drawn.hidden, drawn.hidden_owner),
            **self._of_users(drawn, rng),
        }
        if self.model.tokens is not None:
            batch["token_offsets"], batch["tokens"] = self.model.content_of(rows)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _of_users(self, drawn: Drawn, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        settings, found = self.model.settings, {}
        if settings.user_buckets and self.users.bucket is not None:
            known = rng.random(len(drawn.user)) >= settings.user_dropout
            found["user"] = np.where(known, self.users.bucket[drawn.user], -1)
        if self.users.attributes is not None:
            given = self.users.attributes
            counts = np.diff(given.offsets)[drawn.user].astype(np.int64)
            found["attribute"] = given.id[ragged_index(given.offsets[drawn.user], counts)].astype(np.int64)
            found["attribute_offsets"] = np.cumsum(counts) - counts
        if settings.context:
            found["hour"], found["weekday"] = clock(drawn.now)
        return found


@dataclass(slots=True)
class _Run:
    """A `Task`: each epoch is the training up to one cutoff."""

    module: TwoTower
    interactions: Interactions
    orders: Orders
    cutoffs: Sequence[int]
    settings: TwoTowerTraining
    features: np.ndarray  # float32 [E, F] of the orders
    taught: np.ndarray = field(init=False)  # bool [V] taken before the cutoff
    batches: Batches = field(init=False)
    order: np.ndarray = field(init=False)  # int64 [steps * batch] examples

    @property
    def epochs(self) -> int:
        return len(self.cutoffs)

    def begin(self, epoch: int, rng: np.random.Generator) -> int:
        settings, cutoff = self.settings, self.cutoffs[epoch]
        examples = NextOrders.until(
            cutoff,
            interactions=self.interactions,
            orders=self.orders,
            half_life_days=settings.example_half_life_days,
            repeat_share=settings.repeat_share,
            targets=settings.targets,
            max_history=settings.max_history,
            hide_history=True,
        )
        log = self.interactions.histories
        self.taught = np.bincount(log.item[log.time < cutoff], minlength=self.interactions.items) > 0
        self.batches = Batches(self.module, examples, settings.negatives, self.taught, features=self.features)
        steps = settings.steps_more if epoch else settings.steps
        self.order = spread(examples.chance, steps * settings.batch, rng)
        return steps

    def batch(self, step: int, rng: np.random.Generator, *, rank: int, ranks: int) -> Batch:
        size = self.settings.batch
        return self.batches.of(self.order[step * size : (step + 1) * size][rank::ranks], rng)

    def validate(self) -> float:
        return float("nan")


def train_two_tower(
    interactions: Interactions,
    *,
    tokens: Tokens,
    category: np.ndarray,
    cutoffs: Sequence[int],
    sizes: Sequence[int],
    settings: TwoTowerTraining,
    seed: int,
    start: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[float, float], None] = lambda share, loss: None,
) -> Iterator[TowerSnapshot]:
    """A `TowerSnapshot` for each of `cutoffs` (epoch seconds, ascending), trained on earlier events only.

    `sizes` says how many leading item rows each snapshot covers: those published before its cutoff.
    `tokens` are the hashed title words and `category` int32 [V] the categories of all V items.
    `start` is the `resume` of the last snapshot there is: only those after it follow. `progress(share, loss)`
    is called after each step. Raises ValueError for cutoffs that do not ascend or that no order precedes.
    """
    if list(cutoffs) != sorted(set(cutoffs)):
        raise ValueError(f"cutoffs must ascend, got {list(cutoffs)}")
    orders = orders_of(interactions)
    if not len(orders.time) or orders.time[0] >= cutoffs[0]:
        raise ValueError(f"no order before the first cutoff {cutoffs[0]}: nothing to train on")
    features = _order_features(interactions, orders, category, until=cutoffs[-1])
    torch.manual_seed(seed)
    scale = _standardization(features[orders.time < cutoffs[0]])
    model = TwoTower(
        items=interactions.items,
        tokens=tokens,
        settings=settings.model,
        feature_mean=scale["feature_mean"],
        feature_scale=scale["feature_scale"],
    )
    run = _Run(model, interactions, orders, cutoffs, settings, features)
    loop = LoopSettings(settings.learning_rate, settings.weight_decay, every_epoch_anew=True)
    for checkpoint in train(run, settings=loop, seed=seed, start=start, progress=progress):
        number = int(checkpoint["epoch"])
        size = sizes[number]
        yield TowerSnapshot(
            cutoff=cutoffs[number],
            item_vectors=model.item_vectors(size, run.taught),
            encoder=model.export(size, run.taught).arrays(),
            loss=float(checkpoint["loss"]),
            resume=checkpoint,
        )


def _order_features(
    interactions: Interactions, orders: Orders, category: np.ndarray, *, until: int
) -> np.ndarray:
    """`USER_FEATURES` just before each order, float32 [E, F]; in blocks, to bound memory. Orders from
    `until` on are never drawn and stay NaN."""
    table = np.full((len(orders.time), len(USER_FEATURES)), np.nan, np.float32)
    for start in range(0, int((orders.time < until).sum()), 4096):
        rows = slice(start, start + 4096)
        histories = histories_at(interactions, users=orders.user[rows], now=orders.time[rows])
        table[rows] = user_features(histories, now=orders.time[rows], category=category)
    return table


def _standardization(features: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and deviation of log(1 + |x|); a category code is no quantity and gets scale inf (not used)."""
    logs = np.log1p(np.abs(features))
    with np.errstate(invalid="ignore"):
        mean = np.nan_to_num(np.nansum(logs, axis=0) / np.maximum((~np.isnan(logs)).sum(axis=0), 1))
        scale = np.sqrt(np.nansum((logs - mean) ** 2, axis=0) / np.maximum((~np.isnan(logs)).sum(axis=0), 1))
    scale = np.maximum(scale, 0.1)
    scale[USER_FEATURES.index("top_category")] = np.inf
    return {"feature_mean": mean.astype(np.float32), "feature_scale": scale.astype(np.float32)}
