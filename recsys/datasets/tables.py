"""What every reader of a data set shares: its result, and reading one file as Arrow or saying why not.

CSV columns are text unless the reader names their type: an id like 007 must not become a number.
A folder, an empty file and a file of another format are errors with a remedy.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from recsys.errors import DataError

FORMATS = (".parquet", ".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Events (EVENT_SCHEMA, not validated) and the items that the same source describes (ITEM_SCHEMA)."""

    events: pa.Table
    items: pa.Table


def read_table(
    path: str | Path,
    *,
    types: Mapping[str, pa.DataType] | None = None,
    delimiter: str | None = None,
    names: Sequence[str] | None = None,
    encoding: str = "utf8",
) -> pa.Table:
    """The file at `path` by its ending: Parquet, CSV/TSV or JSON lines; at least one row.

    `types` of CSV columns (others are text), `names` if the file has no header.
    Raises DataError.
    """
    path = Path(path)
    kind = path.suffix.lower()
    check_file(path)
    if kind not in FORMATS and delimiter is None:
        raise DataError(f"{path} has an ending that recsys does not read; give one of {', '.join(FORMATS)}")
    try:
        if kind == ".parquet":
            table = pq.read_table(path)
        elif kind in (".jsonl", ".ndjson", ".json"):
            table = pa_json.read_json(path)
        else:
            table = _read_csv(
                path, types or {}, delimiter or ("\t" if kind == ".tsv" else ","), names, encoding
            )
        if doubled := [n for n, count in Counter(table.column_names).items() if count > 1]:
            raise DataError(f"{path} has column {doubled[0]!r} twice; rename one of them")
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeDecodeError, OSError) as error:
        text = str(error).splitlines()[0]
        raise DataError(
            f"{path} can't be read as {kind[1:] or 'CSV'} ({text}); check its format and ending"
        ) from error
    if not len(table):
        raise DataError(f"{path} has no rows; give a file with data")
    return table.replace_schema_metadata(None)


def check_file(path: Path) -> None:
    """Raises DataError unless `path` is a file that is readable and not empty."""
    if not path.exists():
        raise DataError(f"{path} does not exist; give a file ({', '.join(FORMATS)})")
    if path.is_dir():
        raise DataError(f"{path} is a folder; give one of the files in it ({', '.join(FORMATS)})")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a file with data")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} is not readable for this user; change its permissions")


def _read_csv(
    path: Path, types: Mapping, delimiter: str, names: Sequence[str] | None, encoding: str
) -> pa.Table:
    header = list(names) if names else _header(path, delimiter, encoding)

    def read(threads: bool) -> pa.Table:
        return pc_csv.read_csv(
            path,
            read_options=pc_csv.ReadOptions(column_names=names, encoding=encoding, use_threads=threads),
            parse_options=pc_csv.ParseOptions(delimiter=delimiter, newlines_in_values=delimiter == ","),
            convert_options=pc_csv.ConvertOptions(
                column_types={name: types.get(name, pa.string()) for name in header},
                strings_can_be_null=True,
                null_values=["", "NaN", "nan", "NULL", "null"],
            ),
        )

    try:
        return read(threads=True)
    except pa.ArrowInvalid:
        return read(threads=False)  # whose error has the number of the row


def _header(path: Path, delimiter: str, encoding: str) -> list[str]:
    with pc_csv.open_csv(
        path,
        read_options=pc_csv.ReadOptions(encoding=encoding, use_threads=False),
        parse_options=pc_csv.ParseOptions(delimiter=delimiter, newlines_in_values=delimiter == ","),
    ) as reader:
        return reader.schema.names
