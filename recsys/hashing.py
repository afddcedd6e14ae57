"""One stable salted hash, for every decision that must come out alike everywhere and for ever.

It decides the shard of an item, the bucket of a user and the bus partition of an event. Python's own
`hash` differs between processes, and an unsalted hash would correlate experiments with shards.
"""

import hashlib
from collections.abc import Iterable

import numpy as np


def stable_hash(text: str, *, salt: str) -> int:
    """64 bits of BLAKE2b of `text` under `salt` (at most 16 bytes of UTF-8 are used as BLAKE2's salt)."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=_salt(salt)).digest()
    return int.from_bytes(digest, "little")


def stable_hashes(texts: Iterable[str], *, salt: str) -> np.ndarray:
    """`stable_hash` of each text, uint64 [N]."""
    key = _salt(salt)
    return np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8, salt=key).digest(), "little")
            for t in texts
        ),
        dtype=np.uint64,
    )


def _salt(salt: str) -> bytes:
    encoded = salt.encode()
    return encoded if len(encoded) <= 16 else hashlib.blake2b(encoded, digest_size=16).digest()


def shard_of_rows(rows: np.ndarray, shards: int) -> np.ndarray:
    """Shard of each item row, int32 [N]: splitmix64 of the row, so that load is even.

    Sharding by hash and not by region of the embedding space: a lost shard then costs every query
    the same small share of its candidates instead of costing some queries everything.
    """
    x = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) % np.uint64(shards)).astype(np.int32)
