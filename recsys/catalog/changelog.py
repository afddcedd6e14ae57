"""The catalog changelog: one record for each item that was upserted or deleted, in one order for all.

A record carries the item's row, so that every reader agrees on it. Rows are claimed: a batch of records takes
the rows after those that its writer knows to be given. Where somebody else was given one meanwhile, its
claims are void, for every reader alike; its writer sees that and claims again. So there is no writer that
could be lost, and none to be fenced; and a reader needs to know how many rows are given, not to whom. A
record can carry vectors, each in the space of the model that made it. It knows no bus: any log with one
partition will do.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import orjson

from recsys.errors import DataError

VERSION = 1
PARTITION = 0  # the only one

Kind = Literal["upsert", "delete"]


class LogRecords(Protocol):
    """Consecutive records, and the offset to go on from."""

    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def append_time_ms(self) -> np.ndarray: ...
    @property
    def bodies(self) -> list[bytes]: ...
    @property
    def end(self) -> int: ...


class Log(Protocol):
    """A partitioned log, as the bus is."""

    def append(self, bodies: Sequence[bytes], *, partition: int) -> np.ndarray:
        """Their offsets int64 [N], when they are acknowledged."""

    def tail(
        self, partitions: Sequence[int], *, offsets: Mapping[int, int], block_ms: int, limit: int
    ) -> Sequence[LogRecords]: ...

    def end_offsets(self) -> dict[int, int]: ...


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log, and what a reader has to know there. It travels with a catalog and a release."""

    offset: int  # of the next record
    rows: int  # that were given before
    batch: str = ""  # to whose claims the last ones were
    log: str = ""  # which log: it goes on from the rows of one first build, and from no other

    @classmethod
    def first(cls, ids: Iterable[str]) -> "Position":
        """Where the log of a catalog with these rows begins."""
        rows = list(ids)
        return cls(0, len(rows), log=hashlib.sha256("\n".join(rows).encode()).hexdigest()[:12])


@dataclass(frozen=True, slots=True)
class Claim:
    """That the row is to be given: by a batch of records, whose writer knew of `base` rows."""

    batch: str
    base: int


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one item."""

    item_id: str
    row: int
    claim: Claim | None  # None = the item has the row
    kind: Kind
    item: Mapping[str, Any] | None = None  # the columns of ITEM_SCHEMA, of an upsert
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)  # space -> float32 [D]


def encode_change(change: Change) -> bytes:
    vectors = {
        space: base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
        for space, vector in change.vectors.items()
    }
    return orjson.dumps(
        {
            "version": VERSION,
            "item_id": change.item_id,
            "row": change.row,
            "claim": change.claim,
            "kind": change.kind,
            "item": change.item,
            "vectors": vectors,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def decode_change(body: bytes) -> Change:
    """Raises DataError for what `encode_change` did not write."""
    try:
        tree = orjson.loads(body)
        if tree["version"] != VERSION:
            raise ValueError(f"version {tree['version']}")
        vectors = {
            space: np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
            for space, text in tree["vectors"].items()
        }
        claim = None if tree["claim"] is None else Claim(**tree["claim"])
        kind, row, item_id = tree["kind"], tree["row"], tree["item_id"]
        if kind not in ("upsert", "delete") or type(row) is not int or row < 0:
            raise ValueError("fields of another kind")
        if claim and (not isinstance(claim.batch, str) or type(claim.base) is not int):
            raise ValueError("a claim that is none")
        if (
            not isinstance(item_id, str)
            or not item_id
            or (kind == "upsert") != isinstance(tree["item"], dict)
        ):
            raise ValueError("no item")
        if not all(len(vector) and math.isfinite(float(vector.sum())) for vector in vectors.values()):
            raise ValueError("a vector that is none")
        return Change(item_id, row, claim, kind, tree["item"], vectors)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"a record of the catalog changelog can't be read ({error!r})") from error
