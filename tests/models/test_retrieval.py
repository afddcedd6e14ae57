"""What retrieval models have in common: settings that can't work are refused where they are given."""

import math
from dataclasses import replace

import numpy as np
import pytest

from recsys.errors import SettingsError
from recsys.interactions import Tokens, interactions_from_pairs
from recsys.models.factors.ials import Ials
from recsys.models.factors.pairwise import Bpr
from recsys.models.popularity import Popularity
from recsys.settings import model_of
from recsys.training.retrieval_models import MODELS, model_class


@pytest.mark.parametrize("name", MODELS)
def test_a_models_own_settings_are_allowed(name):
    model_class(name)()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("popularity half_life_days=0", "half_life_days = 0.0: must be above 0"),
        ("covisitation next_older=1.5", "next_older = 1.5: must be from 0 to 1"),
        ("covisitation shrinkage=.nan", "shrinkage = nan: must be 0 or more"),
        ("ease neighbors=0", "neighbors = 0: must be 1 or more"),
        ("normalized_ease user_exponent=-1", "user_exponent = -1.0: must be from 0 to 10"),
        ("sparse_ease neighborhood=0", "neighborhood = 0: must be 1 or more"),
        ("graph_filter terms=0", "terms = 0: must be 1 or more"),
        ("gf_cf factors=-3", "factors = -3: must be 1 or more"),
        ("bspm low_pass=-1", "low_pass = -1.0: must be 0 or more"),
        ("ials epochs=0", "epochs = 0: must be 1 or more"),
        ("ials regularization=0", "regularization = 0.0: must be above 0"),
        ("svd samples=0", "samples = 0: must be 1 or more"),
        ("bpr factors=-3", "factors = -3: must be 1 or more"),
        ("warp learning_rate=0", "learning_rate = 0.0: must be above 0"),
        ("ials exponent=1e9", "exponent = 1000000000.0: must be from 0 to 10"),
        ("ease regularization=.inf", "regularization = inf: must be finite"),
        ("two_tower half_lives_days=[]", "half_lives_days is empty and attention off.*"),
        ("logistic regularization=-0.1", "regularization = -0.1: must be 0 or more"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_what_is_allowed(text, message):
    """They ended in index errors, empty stacks and divisions by zero in the middle of a fit."""
    with pytest.raises(SettingsError, match=f"^{text.split()[0]}: {message}$"):
        model_of(text)


def test_a_half_life_may_be_endless():
    assert Popularity(half_life_days=math.inf).half_life_days == math.inf


def test_the_fold_in_of_many_factors_is_in_the_estimate():
    """`bpr factors=100000` asked for 298 GiB in the middle of a fit."""
    log = interactions_from_pairs(np.array([0]), np.array([0]), users=1, items=1)
    assert Bpr(factors=100_000).estimate(log).memory_mb > 300_000


def test_none_leaves_a_setting_to_the_data():
    assert Ials(factors=None).factors is None


def test_a_smaller_catalog_is_smaller_in_content_too():
    """A release's items are fewer than the catalog's; a sequence model of it died of the tokens of all."""
    log = interactions_from_pairs(np.array([0, 0]), np.array([0, 2]), users=1, items=3)
    told = replace(log, item_tokens=Tokens(np.array([0, 1, 3, 4], np.int32), np.arange(4, dtype=np.int32)))
    cut = told.below(2)
    assert (cut.items, cut.histories.item.tolist()) == (2, [0])
    assert cut.item_tokens is not None
    assert (cut.item_tokens.offsets.tolist(), cut.item_tokens.id.tolist()) == ([0, 1, 3], [0, 1, 2])
    assert log.below(2).item_tokens is None
