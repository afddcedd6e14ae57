"""What configures the two-tower model and its training, and what a training run leaves: no torch.

Apart from the model, so that the settings tree and the serving processes don't pay for importing torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from recsys.errors import SettingsError
from recsys.models.retrieval import check_settings


@dataclass(frozen=True, slots=True)
class TwoTowerSettings:
    dimensions: int = 64
    half_lives_days: tuple[float, ...] = (14.0, 90.0, 720.0)  # one pooled vector for each; inf = plain mean
    attention: bool = True  # one more pooled vector: events weighted by what they are and how new
    places: int = 32  # newest events whose place attention tells apart; 0 = histories have no order
    context: bool = False  # hour of the day and day of the week at the request
    id_dropout: float = 0.1  # share of candidates that must do without their id: new items have none
    token_buckets: int = 8192  # of item content
    user_buckets: int = 0  # of hashed user ids; 0 = users are what they took, and nothing else
    user_dropout: float = 0.5  # share of examples that must do without the user's id: strangers have none
    attribute_buckets: int = 1024  # of user attributes
    temperature: float = 0.1
    popularity: float | None = None  # of softmax: scores rank by p(item | user) share(item) ** it; None = 0
    loss: Literal["softmax", "ccl"] = "softmax"
    margin: float = 0.8  # of ccl: a negative of a lower cosine costs nothing
    negative_weight: float = 150.0  # of ccl: all negatives together against one positive

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=("dimensions", "token_buckets", "attribute_buckets", "temperature"),
            endless=("half_lives_days",),
            not_negative=("places", "user_buckets", "negative_weight"),
            shares=("id_dropout", "user_dropout", "popularity"),
        )
        if not self.half_lives_days and not self.attention:
            raise SettingsError("half_lives_days is empty and attention off: nothing would pool a history")


@dataclass(frozen=True, slots=True)
class Negatives:
    """What a batch's positives are told from."""

    in_batch: int = 4096  # targets of the same batch, at most: drawn by popularity
    uniform: int = 0  # drawn from all items that were taken before


@dataclass(frozen=True, slots=True)
class TwoTowerTraining:
    """The training of the request path's towers, forwards through time."""

    model: TwoTowerSettings = field(default_factory=TwoTowerSettings)
    negatives: Negatives = field(default_factory=Negatives)
    batch: int = 256  # orders a step, over all ranks
    targets: int = 8  # items of an order that are drawn as its positives
    steps: int = 300  # up to the first cutoff
    steps_more: int = 80  # to each later one
    learning_rate: float = 0.005
    weight_decay: float = 0.01
    example_half_life_days: float = 60.0  # an order's chance to be drawn, by its age at the cutoff
    repeat_share: float = 0.2  # chance that an item bought before is a target (history finds those anyway)
    max_history: int = 300  # newest events of an example; serving may use more

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=("batch", "targets", "steps", "learning_rate", "max_history"),
            endless=("example_half_life_days",),
            not_negative=("steps_more", "weight_decay"),
            shares=("repeat_share",),
        )


@dataclass(frozen=True, slots=True)
class TowerSnapshot:
    """The model as of one cutoff; V(t) = rows first sold before it."""

    cutoff: int
    item_vectors: np.ndarray  # float32 [V(t), d], unit norm
    encoder: Mapping[str, np.ndarray]  # arrays of a `UserEncoder`
    loss: float  # mean over the last steps
    resume: Mapping[str, np.ndarray]  # the loop's checkpoint
