"""Titles as features: hashed word tokens for the item tower, and a category for catalogs that have none.

Decides that a category is the title's commonest word that can name a kind of thing: deterministic, no
model, good enough to keep three mugs from standing side by side. What a word is, `datasets.content`
says.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.datasets.content import TOKEN_SALT, grams_of, words_of
from recsys.hashing import stable_hashes
from recsys.interactions import Tokens
from recsys.types import offsets_of

# colors and materials; sizes and quantities; stop words; words for a look rather than a thing
_NOT_A_KIND = frozenset(
    """
    red blue green pink white black cream ivory yellow orange purple brown grey gray silver gold turquoise
    amber lilac mint natural clear multicolour multicolor coloured colored metal wood wooden glass ceramic
    enamel paper plastic felt zinc tin wicker cotton
    small large big mini medium tall giant set pack piece pcs pair one two three four five six seven eight
    nine ten dozen asstd assorted assort box of
    the and with for from in on a an to by at or my your this that no
    design style classic vintage retro antique traditional english french regency party home sweet love
    little lovely pretty hanging travel colour color
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class TextCategories:
    """The category of each title."""

    code: np.ndarray  # int32 [V] position in `names`; -1 = no word of the title can name a kind
    names: tuple[str, ...]  # commonest first


def hash_tokens(titles: Sequence[str], *, buckets: int = 8192) -> Tokens:
    """Words and adjacent word pairs of each title, hashed to `buckets` ids (Weinberger et al. 2009)."""
    grams = [grams_of(title) for title in titles]
    counts = np.array([len(g) for g in grams], np.int64)
    hashes = stable_hashes((gram for g in grams for gram in g), salt=TOKEN_SALT)
    return Tokens(offsets_of(counts), (hashes % np.uint64(buckets)).astype(np.int32))


def text_category(titles: Sequence[str], *, max_share: float = 0.08, min_titles: int = 3) -> TextCategories:
    """A category for each title: the word, not a color, number or stop word, that most titles share.

    A word of more than `max_share` of all titles says too little, one of fewer than `min_titles`
    titles is no category. Ties go to the alphabetically first word.
    """
    kinds = [sorted(set(words_of(title)) - _NOT_A_KIND) for title in titles]
    frequency = Counter(word for words in kinds for word in words)
    limit = max(min_titles, max_share * len(titles))
    usable = {w: n for w, n in frequency.items() if min_titles <= n <= limit and len(w) > 2}
    chosen = [max((w for w in words if w in usable), key=usable.__getitem__, default="") for words in kinds]
    sizes = Counter(word for word in chosen if word)
    names = tuple(sorted(sizes, key=lambda word: (-sizes[word], word)))
    code = {word: position for position, word in enumerate(names)}
    return TextCategories(np.array([code.get(word, -1) for word in chosen], np.int32), names)
