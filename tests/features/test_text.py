"""Titles to tokens and to categories."""

import numpy as np

from recsys.features.text import hash_tokens, text_category, words_of


def test_words_fold_case_numbers_and_plurals():
    assert words_of("SET/6 Red Retrospot MUGS, 12cm glass") == [
        "set",
        "red",
        "retrospot",
        "mug",
        "cm",
        "glass",
    ]
    assert words_of("") == []


def test_tokens_are_words_and_pairs_in_range_and_stable():
    tokens = hash_tokens(["red mug", "RED MUGS!", "", "mug"], buckets=1000)
    assert np.diff(tokens.offsets).tolist() == [3, 3, 0, 1]  # two words and their pair
    np.testing.assert_array_equal(tokens.id[:3], tokens.id[3:6])
    assert tokens.id[1] == tokens.id[6]
    assert ((tokens.id >= 0) & (tokens.id < 1000)).all()
    assert tokens.id.tolist() == hash_tokens(["red mug", "RED MUGS!", "", "mug"], buckets=1000).id.tolist()
    assert hash_tokens([]).offsets.tolist() == [0]


def test_a_category_is_the_commonest_word_that_names_a_kind():
    titles = ["Red mug"] * 4 + ["Blue mug cat"] * 2 + ["Cat lamp"] * 3 + ["Red 12"]
    found = text_category(titles, max_share=1.0, min_titles=3)
    assert found.names == ("mug", "cat")  # mug: 6 titles, cat: 5; lamp is the rarer word of its titles
    assert found.code.tolist() == [0] * 6 + [1] * 3 + [-1]


def test_a_word_of_too_many_titles_is_no_category():
    titles = [f"gift {word}" for word in ("mug", "mug", "mug", "lamp", "lamp", "lamp")] * 4
    found = text_category(titles, max_share=0.6, min_titles=3)
    assert set(found.names) == {"mug", "lamp"}
    assert text_category([]).names == ()
