"""`auto` as a retrieval model, and how it chooses."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.advisor.auto import Auto
from recsys.datasets.problem import hold_out
from recsys.errors import DataError, SettingsError
from recsys.interactions import Timing
from recsys.settings import model_of
from tests.contracts.retrieval_model import (
    ALL,
    ITEMS,
    USERS,
    RetrievalModelContract,
    log_of,
    pairs,
    queries_of,
    renamed_problem,
)

CHEAP = Auto(models=("popularity", "covisitation", "ease"))


class TestAuto(RetrievalModelContract):
    model = CHEAP
    renaming_noise = 0.05  # other users are on the slice

    def test_the_export_ranks_as_the_model_does(self, log, fitted):
        """Its parts' do: see tests/models/test_blend.py."""
        assert set(fitted.export()) == set(fitted.parts)


def test_it_is_as_good_as_the_best_that_it_tried():
    fitted = CHEAP.fit(log_of(*pairs(), Timing.SEQUENCE), seed=0)
    assert [one.model for one in fitted.tried] == list(CHEAP.models)
    assert fitted.ndcg >= max(one.ndcg for one in fitted.tried)
    assert np.isclose(sum(one.weight for one in fitted.tried), 1)
    assert set(fitted.parts) == {one.model for one in fitted.tried if one.weight}


def test_without_models_those_of_the_tree_are_tried():
    fitted = Auto().fit(log_of(*pairs()), seed=0)  # 40 items
    assert list(fitted.parts) == ["popularity"]
    assert fitted.decision.leaf.value == "curation"


def test_other_names_give_the_same_choice():
    log = log_of(*pairs(), Timing.SEQUENCE)
    rest, judged = hold_out(replace(log, item_tokens=None, user_tokens=None), users=5, seed=0, newest=True)
    rng = np.random.default_rng(0)
    other, _ = renamed_problem(rest, judged, rng.permutation(USERS), rng.permutation(ITEMS))
    one, two = CHEAP.fit(rest, seed=0), CHEAP.fit(other, seed=0)
    assert one.parts.keys() == two.parts.keys()
    assert one.decision == two.decision


def test_what_does_not_fit_is_not_tried_and_told(monkeypatch):
    log = log_of(*pairs())
    fitted = replace(CHEAP, models=("popularity", "two_tower"), memory_gb=0.12).fit(log, seed=0)
    assert "MB may be used" in fitted.tried[1].why
    fitted = replace(CHEAP, models=("popularity", "two_tower"), budget_minutes=0.001).fit(log, seed=0)
    assert "minutes with a second fit" in fitted.tried[1].why
    assert list(fitted.parts) == ["popularity"]


def test_a_model_that_fails_is_left_out_and_told():
    log = log_of(*pairs())
    unrated = replace(log, histories=replace(log.histories, value=np.full(len(log), np.nan, np.float32)))
    fitted = replace(CHEAP, models=("svd", "popularity")).fit(unrated, seed=0)
    assert "rating" in fitted.tried[0].why
    assert list(fitted.parts) == ["popularity"]
    with pytest.raises(DataError, match=r"auto could train no model: svd: .*rating"):
        replace(CHEAP, models=("svd",)).fit(unrated, seed=0)


def test_too_few_questions_to_choose_by_give_the_first_model():
    user, item = pairs()
    fitted = CHEAP.fit(log_of(user[:40], item[:40]), seed=0)
    assert list(fitted.parts) == ["popularity"]
    assert "can't tell models apart" in fitted.tried[0].why
    assert np.isfinite(fitted.score(queries_of(log_of(user, item), ALL)).max(1)).all()


def test_the_first_model_that_can_be_trained_is_taken():
    user, item = pairs()
    log = log_of(user[:40], item[:40])
    unrated = replace(log, histories=replace(log.histories, value=np.full(len(log), np.nan, np.float32)))
    fitted = replace(CHEAP, models=("svd", "popularity")).fit(unrated, seed=0)
    assert list(fitted.parts) == ["popularity"]


def test_settings_come_as_text_and_bad_ones_are_typed_errors():
    model = model_of("auto budget_minutes=5 models=[ease,popularity]")
    assert model == Auto(budget_minutes=5, models=("ease", "popularity"))
    for text in (
        "auto models=[eese]",
        "auto models=[auto]",
        "auto models=[Auto]",
        "auto budget_minutes=0",
        "auto most=0",
    ):
        with pytest.raises(SettingsError):
            model_of(text)


def test_progress_only_grows():
    told = []
    CHEAP.fit(log_of(*pairs()), seed=0, progress=lambda share, doing: told.append(share))
    assert told == sorted(told)
    assert told[-1] <= 1


def test_parts_have_the_names_that_sources_have():
    """A part that was asked for as two-tower had no source to be served by."""
    fitted = replace(CHEAP, models=("Co-Visitation",)).fit(log_of(*pairs(), Timing.SEQUENCE), seed=0)
    assert list(fitted.parts) == ["covisitation"]


def test_a_model_named_twice_is_tried_once():
    fitted = replace(CHEAP, models=("popularity", "Popularity", "covisitation")).fit(log_of(*pairs()), seed=0)
    assert [one.model for one in fitted.tried] == ["popularity", "covisitation"]
