"""What the changelog does to a shard: each replica ends alike, from wherever it starts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.catalog.changelog import Change, Claim
from recsys.hashing import shard_of_rows
from recsys.index.live import apply_changes
from recsys.index.shard import IndexShard, exact_shard
from tests.contracts.index import D, vectors_of

ITEMS, SHARDS, SPACE = 30, 2, "tower"
VECTORS = vectors_of(200, seed=4)
QUERIES = vectors_of(4, seed=5)


def upsert(row: int, vector: int | None = None, *, space: str = SPACE, **item) -> Change:
    vectors = {} if vector is None else {space: VECTORS[vector]}
    claim = Claim("b", row) if row >= ITEMS else None
    return Change(f"i{row}", row, claim, "upsert", item, vectors)


def delete(row: int) -> Change:
    return Change(f"i{row}", row, None, "delete")


def after(*changes: Change) -> list[IndexShard]:
    shards = [exact_shard(VECTORS[:ITEMS], number, SHARDS).shard for number in range(SHARDS)]
    for number, shard in enumerate(shards):
        apply_changes(shard, list(enumerate(changes)), number=number, shards=SHARDS, space=SPACE)
    return shards


def held(shards: list[IndexShard]) -> dict[int, list[float]]:
    """Scores of the queries of each item row that is found."""
    found: dict[int, list[float]] = {}
    for number, shard in enumerate(shards):
        rows, scores = shard.search(QUERIES, 200)
        for query in range(len(QUERIES)):
            for row, score in zip(rows[query], scores[query]):
                if row >= 0:
                    assert shard_of_rows(np.array([row]), SHARDS)[0] == number
                    found.setdefault(int(row), []).append(round(float(score), 3))
    return found


def expected(vectors: dict[int, int]) -> dict[int, list[float]]:
    return {row: [round(float(q @ VECTORS[v]), 3) for q in QUERIES] for row, v in vectors.items()}


BASE = {row: row for row in range(ITEMS)}


def close(found: dict[int, list[float]], wanted: dict[int, list[float]]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.allclose(found[row], wanted[row], atol=2e-3) for row in wanted
    )


def test_each_kind_of_change():
    assert close(held(after()), expected(BASE))
    assert close(held(after(upsert(40, 100), upsert(3, 101))), expected(BASE | {40: 100, 3: 101}))
    gone = {row: row for row in range(ITEMS) if row not in (3, 4)}
    assert close(held(after(delete(3), upsert(4, available=False), delete(99))), expected(gone))
    # Without a vector the item has the one that it had: of the release, or the last that came.
    back = (upsert(3, 101), delete(3), delete(4), upsert(3, price=1.0), upsert(4))
    assert close(held(after(*back)), expected(BASE | {3: 101}))
    # Also one that came while it was not available.
    hidden = (upsert(42, 100, available=False), upsert(3, 101, available=False), upsert(42), upsert(3))
    assert close(held(after(*hidden)), expected(BASE | {42: 100, 3: 101}))
    # A vector of another model's space says nothing here.
    other = (upsert(5, 100, space="other"), upsert(41, 100, space="other"))
    assert close(held(after(*other)), expected(BASE))


def test_a_vector_of_another_length_is_passed_over():
    short = Change("i3", 3, None, "upsert", {}, {SPACE: np.ones(D - 1, np.float32)})
    zeros = Change("i4", 4, None, "upsert", {}, {SPACE: np.zeros(D, np.float32)})
    assert close(held(after(delete(3), short, zeros)), expected(BASE))


def brings(change: Change, vector: int) -> bool:
    return SPACE in change.vectors and np.array_equal(change.vectors[SPACE], VECTORS[vector])


changes = st.one_of(
    st.builds(upsert, st.integers(0, 50), st.one_of(st.none(), st.integers(60, 199))),
    st.builds(lambda row: upsert(row, 60, available=False), st.integers(0, 50)),
    st.builds(delete, st.integers(0, 50)),
)


@settings(deadline=None, max_examples=60)
@given(log=st.lists(changes, max_size=40), again=st.integers(0, 40))
def test_a_replica_ends_as_the_definition_says_also_when_it_reads_some_twice(log, again):
    vectors, alive = dict(BASE), set(BASE)
    for change in log:
        vector = next((v for v in range(60, 200) if brings(change, v)), None)
        if vector is not None:
            vectors[change.row] = vector
        if change.kind == "delete" or (change.item or {}).get("available") is False:
            alive.discard(change.row)
        elif change.row in vectors:
            alive.add(change.row)
    wanted = expected({row: vectors[row] for row in alive})
    assert close(held(after(*log)), wanted)
    assert close(held(after(*log, *log[again:])), wanted)
