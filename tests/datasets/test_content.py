"""Content as tokens."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from recsys.datasets.content import (
    column_part,
    grams_of,
    hashed,
    list_part,
    quantile_bins,
    take_tokens,
    tokens_of,
)
from recsys.features.text import hash_tokens


def test_folded_tokens_of_titles_are_those_of_the_item_tower():
    titles = ["Red mugs", "", "SET/6 glass bowls", "red mug"]
    folded = [hashed(grams_of(title)) % 8192 for title in titles]
    assert np.concatenate(folded).tolist() == hash_tokens(titles, buckets=8192).id.tolist()


def test_tokens_follow_their_owner_and_nothing_is_no_token():
    owner = np.array([2, 0, 2])
    parts = [
        column_part(owner, pa.array(["x", None, " "]), column="kind"),
        list_part(np.array([1, 2]), pa.array([["a", "", "b"], None]), column="tag"),
        list_part(np.array([2]), pa.array([["a"]]), column="tag"),
    ]
    tokens = tokens_of(parts, things=4)
    assert tokens is not None
    assert tokens.offsets.tolist() == [0, 0, 2, 4, 4]
    assert tokens.id.tolist() == hashed(["tag=a", "tag=b", "kind=x", "tag=a"]).tolist()
    assert (tokens.id >= 0).all()
    assert tokens_of(parts[:0], things=4) is None
    taken = take_tokens(tokens, np.array([2, 0]))
    assert taken is not None
    assert (taken.offsets.tolist(), taken.id.tolist()) == ([0, 2, 2], tokens.id[2:].tolist())
    assert take_tokens(None, np.array([0])) is None


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=60))
def test_bins_keep_order_and_nan_has_none(values):
    numbers = np.array(values, np.float64)
    bins = quantile_bins(numbers)
    assert ((bins == -1) == np.isnan(numbers)).all()
    assert (bins < 10).all()
    given_bins = bins[~np.isnan(numbers)][np.argsort(numbers[~np.isnan(numbers)], kind="stable")]
    assert (np.diff(given_bins) >= 0).all()
    assert np.bincount(quantile_bins(np.arange(100.0))).tolist() == [10] * 10
