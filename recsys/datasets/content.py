"""Content as hashed tokens: words of titles, `column=value` of attributes, bins of numbers.

Decides what a word is, how a text becomes a token, and that a number is told by its tenth of the
catalog. One salt for all: a word and `category=word` are different texts. It does not know languages
beyond English.
"""

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.hashing import stable_hashes
from recsys.interactions import Tokens
from recsys.types import offsets_of, ragged_index

TOKEN_SALT = "title-token"  # frozen: a release's token embeddings depend on it
BINS = 10  # of a number, with about as many things in each
_WORD = re.compile(r"[a-z]+")

Part = tuple[np.ndarray, pa.Array]  # int [N] whose token it is, and its text, string [N]


def words_of(title: str) -> list[str]:
    """Lower-case words of two letters and more; a plural's `s` is dropped so that bag = bags."""
    words = [word for word in _WORD.findall(title.lower()) if len(word) > 1]
    return [w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in words]


def grams_of(title: str) -> list[str]:
    """Words and adjacent word pairs of a title."""
    words = words_of(title)
    return words + [f"{left} {right}" for left, right in itertools.pairwise(words)]


def hashed(texts: Sequence[str]) -> np.ndarray:
    """A token id for each text, int32 [N]: the low 31 bits of its stable hash."""
    return (stable_hashes(texts, salt=TOKEN_SALT) & np.uint64(0x7FFFFFFF)).astype(np.int32)


def tokens_of(parts: Sequence[Part], *, things: int) -> Tokens | None:
    """Tokens of `things` things, those of a thing in the order of `parts`; null and "" are none.

    None if nothing has a token.
    """
    owners, texts = [np.zeros(0, np.int64)], [pa.array([], pa.string())]
    for owner, text in parts:
        text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
        given = pc.fill_null(pc.not_equal(text, ""), False).to_numpy(zero_copy_only=False)
        owners.append(owner[given].astype(np.int64))
        texts.append(text.filter(pa.array(given)).cast(pa.string()))
    owner = np.concatenate(owners)
    if not len(owner):
        return None
    found = pa.concat_arrays(texts).dictionary_encode()
    order = np.argsort(owner, kind="stable")
    ids = hashed(found.dictionary.to_pylist())[found.indices.to_numpy()[order]]
    return Tokens(offsets_of(np.bincount(owner, minlength=things)), ids)


def take_tokens(tokens: Tokens | None, things: np.ndarray) -> Tokens | None:
    """The tokens of these things, in this order."""
    if tokens is None:
        return None
    counts = np.diff(tokens.offsets)[things]
    return Tokens(offsets_of(counts), tokens.id[ragged_index(tokens.offsets[things], counts)])


def column_part(owner: np.ndarray, values: pa.Array | pa.ChunkedArray, *, column: str) -> Part:
    """`column=value` for each value that is there."""
    values = pc.utf8_trim_whitespace(values.cast(pa.string()))
    named = pc.binary_join_element_wise(column, values, "=")
    return owner, pc.if_else(pc.equal(values, ""), "", named)


def list_part(owner: np.ndarray, lists: pa.Array | pa.ChunkedArray, *, column: str) -> Part:
    """`column=value` for each value of each list."""
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return column_part(np.repeat(owner, counts), lists.flatten(), column=column)


def number_part(owner: np.ndarray, values: np.ndarray, *, column: str) -> Part:
    """`column=bin` of each number that is given."""
    bins = quantile_bins(values)
    return column_part(owner[bins >= 0], pa.array(bins[bins >= 0]), column=column)


def title_part(owner: np.ndarray, titles: Sequence[str]) -> Part:
    """The words and word pairs of each title."""
    grams = [grams_of(title) for title in titles]
    counts = np.array([len(g) for g in grams], np.int64)
    return np.repeat(owner, counts), pa.array([gram for g in grams for gram in g], pa.string())


def quantile_bins(values: np.ndarray, *, bins: int = BINS) -> np.ndarray:
    """The bin of each value, int64 [N], about as many values in each; equal values share one; -1 = NaN."""
    given = ~np.isnan(values)
    found = np.full(len(values), -1, np.int64)
    if given.any():
        borders = np.unique(np.quantile(values[given], np.arange(1, bins) / bins))
        found[given] = np.searchsorted(borders, values[given], side="right")
    return found
