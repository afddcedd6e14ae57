"""Text files whose lines are ids between white space: read at once, and what can't be told by line.

Ids are text, and equal only if they are written alike. Where nearly all ids of a column are whole
numbers, another one is a broken line and no name: a header, a stray word or a list with commas would
otherwise become users and items. Lines without anything are passed over. Codes are given by first
appearance, so that what the ids are called changes nothing in what is learned.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError

_NUMBER = r"^-?\d+$"
_STRAY, _STRAY_SHARE = 3, 0.05  # so many distinct ids, or this share, may be broken among numbers


@dataclass(frozen=True, slots=True)
class IdLines:
    """The L lines of a file that are not blank; the ids of line i are id[offsets[i]:offsets[i + 1]]."""

    path: Path
    number: np.ndarray  # int64 [L] as editors count, from 1
    offsets: np.ndarray  # int64 [L + 1]
    id: pa.StringArray

    def __len__(self) -> int:
        return len(self.number)

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def heads(self) -> pa.StringArray:
        """The first id of each line, [L]."""
        return self.id.take(pa.array(self.offsets[:-1]))

    @property
    def tails(self) -> pa.StringArray:
        """All ids but the first of each line, in order."""
        keep = np.ones(len(self.id), bool)
        keep[self.offsets[:-1]] = False
        return self.id.filter(pa.array(keep))

    def check_numbers(self, *, expected: str, head: bool) -> None:
        """Raises DataError for the line of an id that is no number where nearly all are.

        If `head`, the first id of each line is of another kind than the others and judged apart.
        """
        lines = np.repeat(self.number, self.counts)
        first = np.zeros(len(self.id), bool)
        first[self.offsets[:-1]] = head
        for column in (first, ~first):
            _check_numbers(self.id.filter(pa.array(column)), lines[column], self.path, expected)


def read_text(path: Path, *, expected: str) -> str:
    """The whole file, with line ends as on Unix. Raises DataError unless it is there, not empty and UTF-8."""
    if not path.is_file():
        raise DataError(f"no file {path}; expected {expected}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason}); convert the file") from error
    if not text.strip():
        raise DataError(f"{path} is empty; expected {expected}")
    if (place := text.find("\0")) >= 0:
        raise DataError(
            f"{path}, line {text.count(chr(10), 0, place) + 1}: a null byte; expected {expected}, as text"
        )
    return text


def read_id_lines(path: Path, *, expected: str, head: bool) -> IdLines:
    """All lines that are not blank; `expected` says in errors what a line should be.

    Raises DataError as `read_text` and `IdLines.check_numbers`.
    """
    found = id_lines(pa.array(read_text(path, expected=expected).split("\n")), path=path)
    found.check_numbers(expected=expected, head=head)
    return found


def id_lines(texts: pa.Array, *, path: Path) -> IdLines:
    """Lines as ids; `texts` string [L]; those without any are left out."""
    trimmed = pc.ascii_trim_whitespace(texts)
    some = pc.not_equal(trimmed, "").to_numpy(zero_copy_only=False)
    split = pc.ascii_split_whitespace(trimmed.filter(pa.array(some)))
    offsets = np.concatenate(([0], np.cumsum(pc.list_value_length(split).to_numpy(zero_copy_only=False))))
    return IdLines(path, np.flatnonzero(some) + 1, offsets.astype(np.int64), split.flatten())


def encode(*columns: pa.Array) -> tuple[list[np.ndarray], np.ndarray]:
    """Codes of the ids of each column, int32, by first appearance, and the ids, str objects."""
    found = pa.concat_arrays([c.cast(pa.string()) for c in columns]).dictionary_encode()
    codes = found.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    borders = np.cumsum([len(c) for c in columns])[:-1]
    return np.split(codes, borders), np.array(found.dictionary.to_pylist(), dtype=object)


def short(text: str, length: int = 60) -> str:
    """As a message can bear it."""
    return text if len(text) <= length else f"{text[:length]}..."


def _check_numbers(ids: pa.StringArray, lines: np.ndarray, path: Path, expected: str) -> None:
    found = ids.dictionary_encode()
    number = pc.match_substring_regex(found.dictionary, _NUMBER).to_numpy(zero_copy_only=False)
    stray = int((~number).sum())
    if 0 < stray <= max(_STRAY, _STRAY_SHARE * len(number)) and 2 * stray < len(number):
        row = int(np.argmax(~number[found.indices.to_numpy()]))
        raise DataError(
            f"{path}, line {lines[row]}: {ids[row].as_py()!r} is no whole number, as the other ids are; "
            f"expected {expected}: correct the line"
        )
