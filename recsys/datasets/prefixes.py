"""Sessions and the prefixes to be continued: `<stem>.train_sessions.txt`, `<stem>.test_prefix_target.txt`.

The form of the session benchmarks (SR-GNN: Diginetica, Yoochoose): a training line is a session of
items, a test line is "item item ...<TAB>target". A session is a user of its own; a query is a stranger
with the prefix as history, oldest first. All items are ranked, those of the prefix too. Items of the
test file only are rows that nothing taught.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.datasets.lines import IdLines, encode, id_lines, read_id_lines, read_text, short
from recsys.datasets.problem import Judged, Problem, moment_after
from recsys.errors import DataError
from recsys.interactions import Asked, Queries, Timing, interactions_from_pairs
from recsys.types import offsets_of

SESSION = "'item item ...', oldest first, between spaces"
PREFIX = "'item item ...<TAB>target', oldest first, between spaces"
FILES = (".train_sessions.txt", ".test_prefix_target.txt")


def read_prefixes(stem: str | Path) -> Problem:
    """The split that the files give. Raises DataError."""
    train_path, test_path = (Path(f"{stem}{ending}") for ending in FILES)
    sessions = read_id_lines(train_path, expected=SESSION, head=False)
    prefixes, target = _prefixes(test_path)
    (item, seen, wanted), item_ids = encode(sessions.id, prefixes.id, target)
    session = np.repeat(np.arange(len(sessions)), sessions.counts)
    log = interactions_from_pairs(
        session, item, users=len(sessions), items=len(item_ids), timing=Timing.SEQUENCE
    )
    query = np.repeat(np.arange(len(prefixes)), prefixes.counts)
    histories = interactions_from_pairs(
        query, seen, users=len(prefixes), items=len(item_ids), timing=Timing.SEQUENCE
    ).histories
    test = Judged(
        queries=Queries(np.full(len(prefixes), -1, np.int64), histories, moment_after(histories)),
        target_offsets=np.arange(len(prefixes) + 1, dtype=np.int32),
        target=wanted,
        value=np.full(len(prefixes), np.nan, np.float32),
        masked_offsets=offsets_of(np.zeros(len(prefixes), np.int64)),
        masked=np.zeros(0, np.int32),
    )
    return Problem(replace(log, asked=Asked.SESSION, repeats=True), test)


def _prefixes(path: Path) -> tuple[IdLines, pa.Array]:
    """The prefixes, and the target of each."""
    texts = pa.array(read_text(path, expected=PREFIX).split("\n"))
    blank = pc.equal(pc.ascii_trim_whitespace(texts), "").to_numpy(zero_copy_only=False)
    number = np.flatnonzero(~blank) + 1
    texts = texts.filter(pa.array(~blank))
    halves = pc.split_pattern(texts, "\t")
    two = pc.list_value_length(halves).to_numpy() == 2
    parts = halves.filter(pa.array(two)).flatten()
    rows = np.arange(0, len(parts), 2)
    prefix, target = (pc.ascii_trim_whitespace(parts.take(pa.array(rows + side))) for side in (0, 1))
    good = two.copy()
    good[two] = pc.match_substring_regex(target, r"^\S+$").to_numpy(zero_copy_only=False)
    good[two] &= pc.not_equal(prefix, "").to_numpy(zero_copy_only=False)
    if not good.all():
        row = int(np.argmax(~good))
        text = texts[row].as_py()
        raise DataError(f"{path}, line {number[row]}: {short(text)!r} is no prefix; expected {PREFIX}")
    # Judged together, so that a target is held to be of the same kind as the items.
    whole = id_lines(pc.binary_join_element_wise(prefix, target, " "), path=path)
    whole = IdLines(path, number, whole.offsets, whole.id)
    whole.check_numbers(expected=PREFIX, head=False)
    found = id_lines(prefix, path=path)
    return IdLines(path, number, found.offsets, found.id), target
