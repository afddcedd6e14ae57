"""Matrix factorization by stochastic gradients, one pair at a time: BPR, WARP, logistic.

Decides what is common: a user and an item are a vector each, an item's is the sum of its id's and the
mean of its tokens' (so that a new item has one from its content), and an item has a bias; negatives
are uniform among the taught items that the user never took; steps are scaled by row-wise Adagrad; a
small slice of users says when to stop, where the log can spare one. The losses differ by how a negative
is found and how hard a pair is pulled. One thread, so that the same seed gives the same arrays.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recsys.interactions import Interactions, Queries
from recsys.models.factors.fold_in import FoldIn
from recsys.models.factors.pairwise_sgd import BPR, LOGISTIC, WARP, Embeddings, Pairs, sgd_epoch
from recsys.models.held_out import held_out_ndcg, spared_slice
from recsys.models.retrieval import Arrays, Estimate, Progress, Vectors, check_settings, silent
from recsys.models.search_space import Choice, LogUniform, Space


@dataclass(frozen=True, slots=True)
class Factors:
    """Vectors of users and items whose inner product is the score; the last dimension is the item's bias."""

    items: np.ndarray  # float32 [V, D]; NaN = nothing is known of the item
    encoder: FoldIn

    def score(self, queries: Queries) -> np.ndarray:
        return self.export().score(queries)

    def arrays(self) -> Arrays:
        return {"vectors": self.items, **self.encoder.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "Factors":
        return cls(arrays["vectors"], FoldIn.from_arrays(arrays))

    def export(self) -> Vectors:
        return Vectors(self.items, self.encoder)


@dataclass(frozen=True, slots=True)
class Pairwise:
    """What BPR, WARP and logistic have in common."""

    factors: int = 64
    epochs: int = 150  # at most
    patience: int = 3  # looks at the slice without a better one; then the best is kept
    look_every: int = 5  # epochs
    learning_rate: float = 0.1
    regularization: float = 0.01
    content: bool = True  # an item is its tokens, too

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {
        "factors": Choice((32, 64, 128, 256)),
        "learning_rate": LogUniform(0.01, 0.3),
        "regularization": LogUniform(0.001, 0.2),
    }
    loss: ClassVar[int]
    cost: ClassVar[float]  # pairs that a step looks at

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("factors", "epochs", "patience", "look_every"),
            positive=("learning_rate",),
            not_negative=("regularization",),
        )

    def estimate(self, data: Interactions) -> Estimate:
        tokens = len(data.item_tokens.id) if data.item_tokens and self.content else 0
        rows = data.users + data.items + min(tokens, 1_000_000)
        step = 1.5e-9 * self.factors * self.cost * (1 + tokens / max(data.items, 1))
        folded = 2 * self.factors + 4  # what `FoldIn` regresses on
        memory = 3 * rows * self.factors * 4e-6 + 1e-4 * len(data)
        memory += (2 * data.users + 3 * folded) * folded * 8e-6
        return Estimate(memory, self.epochs * len(data) * step)

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> Factors:
        """Raises DataError without an event of positive weight."""
        data = data.teaching()
        rest, judged = spared_slice(data, seed=seed)
        pairs = Pairs.of(rest)
        state = Embeddings.start(rest, factors=self.factors, content=self.content, seed=seed)
        best, best_quality, since = state, -1.0, 0
        for epoch in range(self.epochs):
            progress(epoch / self.epochs, f"epoch {epoch + 1} of at most {self.epochs}")
            sgd_epoch(
                state,
                pairs,
                loss=self.loss,
                learning_rate=self.learning_rate,
                regularization=self.regularization,
                seed=seed * 1000 + epoch,
            )
            if len(judged) and (epoch + 1) % self.look_every == 0:
                quality = held_out_ndcg(state, judged, items=data.items)
                if quality > best_quality:
                    best, best_quality, since = state.copy(), quality, 0
                else:
                    since += 1
                if since == self.patience:
                    break
        if best_quality < 0:
            best = state
        items, users = best.item_vectors(), best.user_vectors(pairs)
        return Factors(items, FoldIn.fit(rest, users=users, items=items))


class Bpr(Pairwise):
    """Bayesian personalized ranking (Rendle et al. 2009): pulled by how likely the pair is ordered wrong."""

    loss = BPR
    cost = 2.0


@dataclass(frozen=True, slots=True)
class Warp(Pairwise):
    """Weighted approximate-rank pairwise loss (Weston, Bengio and Usunier 2011), hybrid as LightFM (Kula
    2015): negatives are drawn until one violates the margin; the sooner, the harder the pull."""

    learning_rate: float = 0.03
    regularization: float = 0.05

    loss: ClassVar[int] = WARP
    cost: ClassVar[float] = 6.0


class Logistic(Pairwise):
    """Logistic matrix factorization (Johnson 2014): each pair by itself, with sampled negatives."""

    loss = LOGISTIC
    cost = 5.0
