"""The Avro schemas of those who write to the bus: ours, those of a folder, and those of a schema registry.

A registry is asked once for each id that it has; an id that it does not have is asked for again, since
it may be registered any moment. A schema that can't be used is the fault of the records that name it,
a registry that does not answer is nobody's: that must not make records malformed.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
import httpx
import orjson
from fastavro.schema import SchemaParseException, fingerprint, to_parsing_canonical_form

from recsys.errors import DataError, SettingsError, UnavailableError
from recsys.events.redis_server import without_password

FRAME = b"\xc3\x01"  # of single-object encoding; 8 bytes of fingerprint follow
FRAME_BYTES = 10
_OURS = Path(__file__).parent / "schemas"


@cache
def event_schema() -> dict[str, Any]:
    """The newest schema in `schemas/`, as parsed JSON: what we write."""
    newest = max(_OURS.glob("event.*.avsc"), key=lambda path: int(path.name.split(".")[1]))
    return dict(json.loads(newest.read_text()))


def frame_of(schema: Any) -> bytes:
    """The ten bytes before an event that was written with `schema`."""
    digest = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    return FRAME + bytes.fromhex(digest)


class WriterSchemas:
    def __init__(self, place: str | None) -> None:
        """`place`: a folder of `*.avsc`, known by fingerprint and, where the file is named by a number,
        by that id; or the url of a schema registry. Raises SettingsError for a bad folder."""
        ours = [json.loads(path.read_text()) for path in _OURS.glob("*.avsc")]
        self._frames = {frame_of(schema): fastavro.parse_schema(schema) for schema in ours}
        self._ids: dict[int, Any] = {}
        self._registry = place.rstrip("/") if place and "://" in place else None
        if place and not self._registry:
            self._read_folder(Path(place))

    def by_frame(self, frame: bytes) -> Any:
        """The parsed schema, or the DataError that says why there is none."""
        return self._frames.get(frame) or DataError(
            f"no schema has the fingerprint {frame[2:].hex()}: add it to bus.schemas"
        )

    def by_id(self, numbers: Iterable[int]) -> dict[int, Any]:
        """For each id its parsed schema, or the DataError that says why there is none.

        Raises UnavailableError if the registry does not answer.
        """
        return {number: self._of_id(number) for number in numbers}

    def _of_id(self, number: int) -> Any:
        if number in self._ids:
            return self._ids[number]
        if self._registry is None:
            return DataError(f"no schema has the id {number}: name its registry in bus.schemas")
        url = f"{self._registry}/schemas/ids/{number}"
        where = without_password(url)
        try:
            answer = httpx.get(url, timeout=5.0)
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # its text may hold the password
            name = type(error).__name__
            raise UnavailableError(
                f"{where} gives no schema ({name}); start it, or correct bus.schemas"
            ) from None
        if answer.status_code == 404:
            return DataError(f"no schema has the id {number}: register it at {where}")
        if answer.status_code != 200:
            status = answer.status_code
            raise UnavailableError(f"{where} gives no schema (HTTP {status}); correct bus.schemas")
        try:
            self._ids[number] = fastavro.parse_schema(orjson.loads(answer.json()["schema"]))
        except Exception as error:  # whatever the schemas of others make of a parser
            problem = f"{where} is no Avro schema that stands alone ({type(error).__name__}: {error})"
            self._ids[number] = DataError(problem)
        return self._ids[number]

    def _read_folder(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.avsc"))
        if not paths:
            raise SettingsError(f"bus.schemas = {str(folder)!r}: no *.avsc there")
        for path in paths:
            try:
                schema = json.loads(path.read_text())
                parsed = fastavro.parse_schema(schema)
                self._frames[frame_of(schema)] = parsed
            except (ValueError, OSError, KeyError, SchemaParseException) as error:
                raise SettingsError(f"{path} is no Avro schema ({error})") from error
            if path.stem.isdigit():
                self._ids[int(path.stem)] = parsed
