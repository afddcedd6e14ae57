"""Sequences: a text file, a line "user item item ...", oldest first, and item attributes beside it.

The form of the sequential benchmarks (SASRec, S3-Rec: Amazon Beauty, LastFM). Lines of one user follow
each other. `<stem>_item2attributes.json` maps the text of an item id to a list of attribute ids, which
become the items' tokens; items that no sequence names are no items here, since nobody could want them.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.datasets.content import column_part, tokens_of
from recsys.datasets.lines import encode, read_id_lines, read_text, short
from recsys.errors import DataError
from recsys.interactions import Interactions, Timing, Tokens, interactions_from_pairs

LINE = "'user item item ...', oldest first, between spaces"
_HALF_PAIR = re.compile(r"[\ud800-\udfff]")
ATTRIBUTES = 'one JSON object {"item": [attribute, ...], ...}'


def read_sequences(path: str | Path) -> Interactions:
    """The whole log; `Timing.SEQUENCE`. Raises DataError."""
    path = Path(path)
    lines = read_id_lines(path, expected=LINE, head=True)
    (user,), user_ids = encode(lines.heads)
    (item,), item_ids = encode(lines.tails)
    if not len(item):
        raise DataError(f"{path} has no item on any line; expected {LINE}")
    log = interactions_from_pairs(
        np.repeat(user, lines.counts - 1),
        item,
        users=len(user_ids),
        items=len(item_ids),
        timing=Timing.SEQUENCE,
    )
    beside = path.with_name(f"{path.stem}_item2attributes.json")
    return replace(log, user_ids=user_ids, item_tokens=_attributes(beside, item_ids))


def _attributes(path: Path, item_ids: np.ndarray) -> Tokens | None:
    """Tokens by item row; None if there is no such file."""
    if not path.exists():
        return None
    try:
        found = json.loads(read_text(path, expected=ATTRIBUTES))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: {error.msg}; expected {ATTRIBUTES}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, endless brackets
        raise DataError(f"{path} can't be read ({error}); expected {ATTRIBUTES}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}; expected {ATTRIBUTES}")
    for item, attributes in found.items():
        if not isinstance(attributes, list) or not all(map(_is_attribute, attributes)):
            raise DataError(f"{path}: item {item!r} has {short(repr(attributes))}; expected {ATTRIBUTES}")
    if found and found.keys().isdisjoint(item_ids):
        raise DataError(
            f"{path} names {short(repr(next(iter(found))))}, but no item of the sequences; give their "
            "attributes, or remove the file"
        )
    lists = [found.get(item, []) for item in item_ids]
    owner = np.repeat(np.arange(len(lists)), [len(attributes) for attributes in lists])
    texts = pa.array([str(a) for attributes in lists for a in attributes], pa.string())
    return tokens_of([column_part(owner, texts, column="attribute")], things=len(lists))


def _is_attribute(value: object) -> bool:
    """A number, or a text that can be encoded: JSON lets halves of surrogate pairs pass."""
    return isinstance(value, int | float) or (isinstance(value, str) and not _HALF_PAIR.search(value))
