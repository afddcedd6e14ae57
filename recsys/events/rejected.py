"""What is kept of a rejected event whose content must not stay: its place on the bus and the reason.

So the audit still adds up, and a duplicate can still be found by its id. An event of a file has no place:
nothing is kept of it, since a file's duplicates are counted and not recorded.
"""

import pyarrow as pa
import pyarrow.compute as pc

from recsys.events.schema import PROVENANCE, REJECTED_SCHEMA
from recsys.events.validation import DUPLICATE


def without_content(rows: pa.Table, *, reason: str) -> pa.Table:
    """The `rows` that have a place on the bus as rejected for `reason`, DUPLICATE or ERASED: REJECTED_SCHEMA.

    `rows` have at least the place, and of duplicates the id; to concatenate them with rows of more columns
    say `promote_options="default"`.
    """
    rows = rows.filter(pc.is_valid(rows["offset"]))
    names = [field.name for field in PROVENANCE] + (["event_id"] if reason == DUPLICATE else [])
    kept = {name: rows[name] for name in names} | {"reason": pa.array([reason] * len(rows), pa.string())}
    columns = [kept.get(field.name, pa.nulls(len(rows), field.type)) for field in REJECTED_SCHEMA]
    return pa.table(columns, schema=REJECTED_SCHEMA)
