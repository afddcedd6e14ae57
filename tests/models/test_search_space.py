"""Spaces of settings, and what each model says of its own."""

from dataclasses import fields, replace

import numpy as np
import pytest

from recsys.models.search_space import Choice, LogUniform, Uniform, draw, text_of
from recsys.settings import model_of
from recsys.training.retrieval_models import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_what_is_drawn_is_a_model_that_can_be_typed(name: str) -> None:
    model = model_of(name)
    assert bool(model.space) == (name != "auto"), "it is a search itself"
    assert set(model.space) <= {field.name for field in fields(model)}
    rng = np.random.default_rng(0)
    for _ in range(50):
        settings = draw(model.space, rng)
        assert model_of(f"{name} {text_of(settings)}") == replace(model, **settings)


def test_draws_stay_within_and_fill_their_range() -> None:
    rng = np.random.default_rng(0)
    assert {Choice((1, None)).draw(rng) for _ in range(50)} == {1, None}
    even = [Uniform(2, 4).draw(rng) for _ in range(1000)]
    assert 2 <= min(even) < 2.1 < 3.9 < max(even) <= 4
    by_power = np.array([LogUniform(0.01, 100).draw(rng) for _ in range(1000)])
    assert 0.01 <= by_power.min() < 0.012 < 90 < by_power.max() <= 100
    assert 0.4 < (by_power < 1).mean() < 0.6
    assert all(value == float(f"{value:.3g}") for value in by_power)


def test_text_is_what_a_command_takes() -> None:
    assert text_of({"a": 1e-5, "b": False, "c": None, "d": (1.0, 2.0), "e": "ccl"}) == (
        'a=1e-05 b=false c=null d=[1.0,2.0] e="ccl"'
    )
