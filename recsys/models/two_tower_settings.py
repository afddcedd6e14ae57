"""What configures the two-tower model and its training, and what a training run leaves: no torch.

Apart from the model, so that the settings tree and the serving processes don't pay for importing torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class TwoTowerSettings:
    dimensions: int = 64
    half_lives_days: tuple[float, ...] = (14.0, 90.0, 720.0)  # one pooled vector for each
    id_dropout: float = 0.1  # share of target items that must do without their id
    temperature: float = 0.1
    token_buckets: int = 8192


@dataclass(frozen=True, slots=True)
class TwoTowerTraining:
    model: TwoTowerSettings = field(default_factory=TwoTowerSettings)
    batch: int = 256  # orders a step, over all ranks
    targets: int = 8  # items of an order that are drawn as its positives
    steps: int = 300  # up to the first cutoff
    steps_more: int = 80  # to each later one
    learning_rate: float = 0.005
    weight_decay: float = 0.01
    example_half_life_days: float = 60.0  # an order's chance to be drawn, by its age at the cutoff
    repeat_share: float = 0.2  # chance that an item bought before is a target (history finds those anyway)
    max_history: int = 300  # newest events of an example; serving may use more


@dataclass(frozen=True, slots=True)
class TowerSnapshot:
    """The model as of one cutoff; V(t) = rows first sold before it."""

    cutoff: int
    item_vectors: np.ndarray  # float32 [V(t), d], unit norm
    encoder: Mapping[str, np.ndarray]  # arrays of a `UserEncoder`
    loss: float  # mean over the last steps
