"""RecBole's atomic files: a folder with one `.inter`, and `.user` and `.item` where there are any.

Tab-separated, the header names and types each column: `rating:float`, `movie_title:token_seq`. An
interaction has user_id, item_id and perhaps rating and timestamp (epoch seconds, or milliseconds if they
are too large for that); other columns of `.inter` are passed over. Columns of `.user` and `.item` become
tokens: `column=value` of a token, of each word of a token_seq, of the tenth of a float; a float_seq says
nothing that can be shared and is left out. Ids are no tokens. Users and items without an interaction
are users and items, too.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv

from recsys.datasets.content import Part, column_part, list_part, number_part, tokens_of
from recsys.datasets.lines import encode, read_text
from recsys.errors import DataError
from recsys.interactions import Interactions, Timing, interactions_from_pairs

TYPES = ("token", "token_seq", "float", "float_seq")
INTERACTIONS = "user_id:token<TAB>item_id:token, and rating:float, timestamp:float if there are any"
MISSING = ("", "nan", "null", "none", "na")
_LARGEST_SECOND = 1e11  # the year 5138: larger times are milli-, micro- or nanoseconds
_LARGEST_TIME = 1e9 * _LARGEST_SECOND


@dataclass(frozen=True, slots=True)
class AtomicTable:
    path: Path
    columns: dict[str, pa.Array]  # string [N], trimmed
    types: dict[str, str]  # one of TYPES
    line: np.ndarray  # int64 [N] of each row in the file, from 1

    def __len__(self) -> int:
        return len(self.line)

    def fail(self, row: int, text: str) -> DataError:
        return DataError(f"{self.path}, line {self.line[row]}: {text}")


def read_atomic(folder: str | Path, *, min_rating: float | None = None) -> Interactions:
    """The whole log, or what is rated `min_rating` or better in it. Raises DataError."""
    folder = Path(folder)
    path = _only(folder, "inter")
    if path is None:
        raise DataError(f"{folder} has no file *.inter; expected a folder with one, whose header is e.g. "
                        f"{INTERACTIONS}")  # fmt: skip
    table = _read(path, needs=("user_id", "item_id"))
    described = {kind: _described(folder, kind) for kind in ("user", "item")}
    users, items = (
        encode(table.columns[f"{kind}_id"], *([] if about is None else [about.columns[f"{kind}_id"]]))
        for kind, about in described.items()
    )
    tokens = {
        kind: None if about is None else tokens_of(_parts(about, codes[0][1], kind), things=len(codes[1]))
        for (kind, about), codes in zip(described.items(), (users, items), strict=True)
    }
    value = _numbers(table, "rating", largest=float(np.finfo(np.float32).max))
    time = _numbers(table, "timestamp", largest=_LARGEST_TIME)
    if time is not None and np.isnan(time).any():
        raise table.fail(
            int(np.argmax(np.isnan(time))), "no timestamp; give all rows one, or remove the column"
        )
    if time is not None and 0 < (larger := np.abs(time) > _LARGEST_SECOND).sum() < len(time) / 2:
        row = int(np.argmax(larger))  # the unit of all would be taken from it
        raise table.fail(row, f"timestamp {time[row]:g} is of another unit than the others; correct it")
    keep = np.ones(len(table), bool)
    if min_rating is not None:
        if value is None or np.isnan(value).all():
            raise DataError(f"{path} has no ratings, so none is {min_rating} or better; omit --min-rating")
        keep = value >= min_rating
        if not keep.any():
            raise DataError(f"{path}: the best rating is {np.nanmax(value):g}; lower --min-rating")
    log = interactions_from_pairs(
        users[0][0][keep],
        items[0][0][keep],
        users=len(users[1]),
        items=len(items[1]),
        time=None if time is None else _seconds(time[keep]),
        value=None if value is None else value[keep],
        timing=Timing.NONE if time is None else Timing.CLOCK,
    )
    return replace(log, user_ids=users[1], user_tokens=tokens["user"], item_tokens=tokens["item"])


def _only(folder: Path, ending: str) -> Path | None:
    found = sorted(folder.glob(f"*.{ending}"))
    if len(found) > 1:
        raise DataError(
            f"{folder} has several files *.{ending} ({', '.join(f.name for f in found)}); keep one"
        )
    return found[0] if found else None


def _described(folder: Path, kind: str) -> AtomicTable | None:
    """The table of users or items, each there once; None if there is no such file."""
    path = _only(folder, kind)
    if path is None:
        return None
    table = _read(path, needs=(f"{kind}_id",))
    codes = encode(table.columns[f"{kind}_id"])[0][0]
    first = np.zeros(len(codes), bool)
    first[np.unique(codes, return_index=True)[1]] = True
    if not first.all():
        row = int(np.argmin(first))
        raise table.fail(row, f"{kind} {table.columns[f'{kind}_id'][row].as_py()!r} stands twice; keep one")
    return table


def _read(path: Path, *, needs: Sequence[str]) -> AtomicTable:
    text = read_text(path, expected="a header 'name:type<TAB>name:type ...', then a row a line")
    header = text.partition("\n")[0].split("\t")
    types = dict(_typed(cell, path) for cell in header)
    if len(types) < len(header):
        raise DataError(f"{path}, line 1: a column stands twice in {', '.join(header)}; rename one")
    if absent := [name for name in needs if name not in types]:
        raise DataError(f"{path}, line 1: no column {absent[0]!r} among {', '.join(types)}; rename it")
    try:
        table = pc_csv.read_csv(
            io.BytesIO(text.encode()),
            read_options=pc_csv.ReadOptions(column_names=list(types), skip_rows=1, use_threads=False),
            parse_options=pc_csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
            convert_options=pc_csv.ConvertOptions(column_types=dict.fromkeys(types, pa.string())),
        ).combine_chunks()
    except pa.ArrowInvalid as error:
        raise _broken_row(text, path, header) or DataError(f"{path}: {error}; correct it") from error
    columns = {name: pc.utf8_trim_whitespace(table[name].combine_chunks()) for name in types}
    some = np.logical_or.reduce(
        [pc.not_equal(c, "").to_numpy(zero_copy_only=False) for c in columns.values()]
    )
    columns = {name: column.filter(pa.array(some)) for name, column in columns.items()}
    found = AtomicTable(path, columns, types, np.flatnonzero(some) + 2)
    if not len(found):
        raise DataError(f"{path} has no row after its header; give a file with data")
    for name in needs:
        if (absent_at := pc.index(columns[name], "").as_py()) >= 0:
            raise found.fail(absent_at, f"no {name}; expected {' '.join(header)}")
    return found


def _typed(cell: str, path: Path) -> tuple[str, str]:
    name, _, kind = cell.strip().rpartition(":")
    if not name or kind not in TYPES:
        raise DataError(
            f"{path}, line 1: {cell!r} is no name:type between tabs; types are {', '.join(TYPES)}"
        )
    return name, kind


def _broken_row(text: str, path: Path, header: list[str]) -> DataError | None:
    """The first row with another number of columns than the header."""
    for number, line in enumerate(text.split("\n"), start=1):
        cells = line.count("\t") + 1
        if line.strip() and cells != len(header):
            return DataError(
                f"{path}, line {number}: {cells} columns where the header has {len(header)} "
                f"({', '.join(header)}); correct the line"
            )
    return None


def _numbers(table: AtomicTable, name: str, *, largest: float = np.inf) -> np.ndarray | None:
    """A column of floats up to `largest`, float64 [N], NaN = not given; None if there is no such column."""
    if name not in table.columns:
        return None
    text = table.columns[name]
    missing = pc.is_in(pc.utf8_lower(text), value_set=pa.array(MISSING))
    given = pc.if_else(missing, pa.scalar(None, pa.string()), text)
    try:
        values = pc.cast(given, pa.float64())
    except pa.ArrowInvalid:
        values = pa.array([_number(t) for t in given.to_pylist()], pa.float64())
    numbers = pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False)
    wrong = ~np.isfinite(numbers) & ~missing.to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise table.fail(row, f"{name} {text[row].as_py()!r} is no number; correct it or leave it empty")
    if (beyond := np.abs(numbers) > largest).any():
        row = int(np.argmax(beyond))
        raise table.fail(row, f"{name} {text[row].as_py()!r} is too large; correct it")
    return numbers


def _number(text: str | None) -> float:
    """NaN for what is none."""
    try:
        return float((text or "nan").replace("_", "?"))  # Python would read 1_0 as 10
    except ValueError:
        return float("nan")


def _seconds(times: np.ndarray) -> np.ndarray:
    while len(times) and np.abs(times).max() > _LARGEST_SECOND:
        times = times / 1000
    return np.floor(times).astype(np.int64)


def _parts(table: AtomicTable, owner: np.ndarray, kind: str) -> list[Part]:
    """The tokens of all columns but the id; `owner` int [N] is the code of each row."""
    parts = []
    for name, text in table.columns.items():
        if name == f"{kind}_id" or table.types[name] == "float_seq":
            continue
        if table.types[name] == "token":
            parts.append(column_part(owner, text, column=name))
        elif table.types[name] == "token_seq":
            parts.append(list_part(owner, pc.utf8_split_whitespace(text), column=name))
        elif (numbers := _numbers(table, name)) is not None:
            parts.append(number_part(owner, numbers, column=name))
    return parts
