"""Who was erased, and which events that concerns: what every append leaves out.

Users are kept as hashes, with the time of their erasure. What a user did, or what was taken of them, until
then is gone, however often the bus or a file is replayed; what they do after it is welcome again.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.events.rejected import without_content
from recsys.events.schema import TIMESTAMP
from recsys.events.validation import ERASED
from recsys.hashing import stable_hashes

ERASED_SCHEMA = pa.schema([("user", pa.int64()), ("erased_at", TIMESTAMP)])

_SALT = "erased-user"


def erased_users(user_ids: Sequence[str], *, at_ms: int) -> pa.Table:
    """These users as erased at that time, ERASED_SCHEMA."""
    at = pa.array([at_ms * 1000] * len(user_ids), pa.int64()).cast(TIMESTAMP)
    return pa.table([_hashes(user_ids), at], schema=ERASED_SCHEMA)


def erased_mask(erased: pa.Table, events: pa.Table) -> np.ndarray:
    """Which events are of a user who was erased when or after they happened or were taken, bool [N].

    `erased` has ERASED_SCHEMA.
    """
    if not len(erased) or not len(events):
        return np.zeros(len(events), bool)
    users = pa.chunked_array([events["user_id"].combine_chunks().dictionary_encode()]).combine_chunks()
    last = erased.group_by("user").aggregate([("erased_at", "max")])
    found = pc.index_in(_hashes(users.dictionary.to_pylist()), last["user"].combine_chunks())
    at = last["erased_at_max"].take(found).take(users.indices)
    within = [pc.fill_null(pc.less_equal(events[name], at), False) for name in ("appended_at", "timestamp")]
    return pc.or_(*within).to_numpy(zero_copy_only=False)


def without_erased(events: pa.Table, rejected: pa.Table, *, erased: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(events, rejected) in which the events of erased users are no more than rejected places."""
    if not len(erased):
        return events, rejected
    parts = list[pa.Table]()
    for rows in (events, rejected):
        gone = pa.array(erased_mask(erased, rows))
        parts += [rows.filter(pc.invert(gone)), without_content(rows.filter(gone), reason=ERASED)]
    return parts[0], pa.concat_tables(parts[1:])


def _hashes(user_ids: Sequence[str | None]) -> pa.Array:
    """What is kept of users, int64 [N]; no user is an empty one, of whom no event is stored."""
    return pa.array(stable_hashes((user or "" for user in user_ids), salt=_SALT).view(np.int64))
