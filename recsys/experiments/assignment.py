"""Assignment of users to arms: one salted hash per layer (Tang et al., 2010).

Layers are independent, since each has its own salt; the experiments of one layer exclude each other,
since each owns a range of the layer's buckets. The same user is always in the same arm, on every
replica and for ever, and nothing is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from recsys.errors import SettingsError
from recsys.hashing import stable_hash
from recsys.types import RequestBatch

BUCKETS = 10_000
CONTROL = "control"  # the arm of who is in no experiment of the layer


@dataclass(frozen=True, slots=True)
class Arm:
    share: float  # of the experiment's traffic
    set: Mapping[str, Any] = field(default_factory=dict)  # "stage.setting" -> value


@dataclass(frozen=True, slots=True)
class Experiment:
    traffic: float  # share of the layer
    arms: Mapping[str, Arm]

    def __post_init__(self) -> None:
        if not 0 <= self.traffic <= 1:
            raise SettingsError(f"an experiment's traffic must be in 0..1, got {self.traffic:g}")
        for name, arm in self.arms.items():
            if not 0 <= arm.share <= 1:
                raise SettingsError(f"the share of arm {name!r} must be in 0..1, got {arm.share:g}")
        total = sum(arm.share for arm in self.arms.values())
        if abs(total - 1) > 1e-9:
            raise SettingsError(f"the shares of an experiment's arms must sum to 1, got {total:g}")


@dataclass(frozen=True, slots=True)
class Layer:
    experiments: Mapping[str, Experiment]

    def __post_init__(self) -> None:
        total = sum(e.traffic for e in self.experiments.values())
        if total > 1 + 1e-9:
            raise SettingsError(f"the experiments of a layer take {total:g} of its traffic: at most 1")

    def ranges(self) -> list[tuple[int, str, Arm]]:
        """(first bucket after this arm, "experiment:arm", arm), in the order of the file."""
        edges, start = [], 0.0
        for name, experiment in self.experiments.items():
            for arm_name, arm in experiment.arms.items():
                start += experiment.traffic * arm.share * BUCKETS
                edges.append((round(start), f"{name}:{arm_name}", arm))
        return edges


@dataclass(frozen=True, slots=True)
class Experiments:
    """The experiments step. `layers`: name -> Layer; the name is the salt."""

    layers: Mapping[str, Layer]

    def arm_of(self, layer: str, user_id: str) -> str:
        """ "experiment:arm" of this user, or "control" outside every experiment of the layer."""
        bucket = stable_hash(user_id, salt=layer) % BUCKETS
        for end, name, _ in self.layers[layer].ranges():
            if bucket < end:
                return name
        return CONTROL

    def overrides(self, arms: Mapping[str, str], stage: str) -> dict[str, Any]:
        """Settings of `stage` that these arms (layer -> arm) change."""
        changed: dict[str, Any] = {}
        for layer, arm_name in arms.items():
            for _, name, arm in self.layers[layer].ranges():
                if name == arm_name:
                    prefix = stage + "."
                    changed |= {k[len(prefix) :]: v for k, v in arm.set.items() if k.startswith(prefix)}
        return changed

    def __call__(self, batch: RequestBatch) -> RequestBatch:
        arms = {layer: tuple(self.arm_of(layer, u) for u in batch.user_ids) for layer in self.layers}
        return replace(batch, arms=arms)
