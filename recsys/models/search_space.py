"""What a search for better settings may try: for some settings of a model, the values that each may take.

Decides that a draw is of one setting at a time, whatever the others are, and that numbers are rounded to
three digits, so that they can be read, told and typed. Which settings matter, and how far around its
default each may go, stands in each model's `space`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Choice:
    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        return self.values[rng.integers(len(self.values))]


@dataclass(frozen=True, slots=True)
class Uniform:
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        return float(f"{rng.uniform(self.low, self.high):.3g}")


@dataclass(frozen=True, slots=True)
class LogUniform:
    """Each power of ten is as likely as any other."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        return float(f"{np.exp(rng.uniform(np.log(self.low), np.log(self.high))):.3g}")


Space = Mapping[str, Choice | Uniform | LogUniform]


def draw(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    return {name: values.draw(rng) for name, values in space.items()}


def text_of(settings: Mapping[str, Any]) -> str:
    """As they are written behind a model's name: "factors=64 content=false"."""
    return " ".join(f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in settings.items())
