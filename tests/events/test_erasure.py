import base64
import os
import threading
import time
from contextlib import suppress
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from recsys.events import maintenance
from recsys.events.codec import decode_events
from recsys.events.delta import StoreTable
from recsys.events.erased import ERASED_SCHEMA, erased_mask, erased_users
from recsys.events.erasure import erase
from recsys.events.maintenance import archive, compact
from recsys.events.retrying import retry_rejected
from recsys.events.schema import STORED_SCHEMA, TIMESTAMP
from recsys.events.store import EventStore
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder

TAKEN_MS = 1_770_000_000_000  # 2026-02-02
ERASED_MS = TAKEN_MS + 1000
USER = "somebody@example.org"


def rows(users, *, start=0, partition=0, timestamp="2026-01-10T00:00:00Z", taken_ms=TAKEN_MS):
    bodies = [
        {"event_id": f"e{n}", "user_id": user, "item_id": "i", "event_type": "view", "timestamp": timestamp}
        for n, user in enumerate(users, start)
    ]
    none = partition is None
    provenance = [
        pa.array([partition] * len(users), pa.int32()),
        pa.array([None if none else start + n for n in range(len(users))], pa.int64()),
        pa.array([taken_ms * 1000] * len(users), pa.int64()).cast(TIMESTAMP),
    ]
    return pa.Table.from_arrays([*decode_events(bodies).columns, *provenance], schema=STORED_SCHEMA)


def refused(users, **given):
    events = rows(users, **given)
    return events.append_column("reason", pa.array(["missing_item"] * len(events), pa.string()))


def filled(tmp_path):
    """Places 0 to 5; the user's are 0 and 3 (stored) and 4 (rejected), and one of a file."""
    store = EventStore(tmp_path)
    store.append(rows([USER, "v"]), offsets={0: (0, 2)})
    more = {"start": 2, "timestamp": "2026-02-01T00:00:00Z"}
    store.append(rows(["v", USER], **more), rejected=refused([USER, "v"], start=4), offsets={0: (2, 6)})
    store.append(rows([USER, "w"], start=100, partition=None))
    return store


def places_of(store):
    """Each place of the bus that the store accounts for; all of them, however often."""
    both = [store.read(columns=["offset"]), store.read_rejected(columns=["offset"])]
    return sorted(o for o in pa.concat_tables(both)["offset"].to_pylist() if o is not None)


def assert_gone(store, folder, *, commits_failed=False):
    if commits_failed:  # their files belong to no commit: they go when they are a day old
        for file in folder.rglob("*.parquet"):
            os.utime(file, (time.time() - 90_000,) * 2)
        maintenance.vacuum(store, keep_hours=0)
    assert USER not in store.read()["user_id"].to_pylist()
    rejected = store.read_rejected()
    assert USER not in rejected["user_id"].to_pylist()
    erased = rejected.filter(pa.compute.equal(rejected["reason"], "erased"))
    for name in erased.column_names:
        kept = name in ("partition", "offset", "appended_at", "reason")
        assert erased[name].null_count == (0 if kept else len(erased)), name
    for file in folder.rglob("*"):
        if file.suffix == ".parquet":
            assert USER not in str(pq.read_table(file, partitioning=None).to_pylist()), file
        if file.is_file():
            assert USER.encode() not in file.read_bytes(), file


def test_a_user_is_erased_from_every_file_and_the_audit_still_adds_up(tmp_path):
    store = filled(tmp_path)
    erased = erase(store, [USER], now_ms=ERASED_MS)
    assert (erased.events, erased.rejected) == (3, 1)
    assert erased.files >= 3
    assert places_of(store) == [0, 1, 2, 3, 4, 5]
    assert sorted(store.read()["user_id"].to_pylist()) == ["v", "v", "w"]
    assert store.committed("events", 1) == {0: 6}
    assert_gone(store, tmp_path)
    assert erase(store, [USER], now_ms=ERASED_MS).events == 0
    assert places_of(store) == [0, 1, 2, 3, 4, 5]


def test_a_replay_of_the_bus_or_of_a_file_brings_nothing_back(tmp_path):
    store = filled(tmp_path)
    erase(store, [USER], now_ms=ERASED_MS)
    late = {"start": 6, "taken_ms": ERASED_MS + 5000}
    assert (
        store.append(rows([USER, "v"], **late), offsets={0: (6, 8)}).stored == 1
    )  # done before, taken after
    assert store.append(rows([USER], partition=None, taken_ms=ERASED_MS + 5000)).stored == 0
    store.append(rows([]), rejected=refused([USER], start=8), offsets={0: (8, 9)})
    assert places_of(store) == [*range(9)]
    assert_gone(store, tmp_path)
    new = rows([USER], start=9, taken_ms=ERASED_MS + 5000, timestamp="2026-03-01")
    assert store.append(new, offsets={0: (9, 10)}).stored == 1  # what is done afterwards is welcome


def test_the_mask():
    erased = pa.concat_tables([erased_users([USER], at_ms=at) for at in (ERASED_MS, 0)])
    after = {"taken_ms": ERASED_MS + 1}
    events = pa.concat_tables(
        [
            rows([USER, "v", None]),
            rows([USER], **after),
            rows([USER], timestamp="2026-03-01"),
            rows([USER], timestamp="2026-03-01", **after),
            rows([USER], timestamp=None, **after),
            rows([USER], timestamp=None, taken_ms=ERASED_MS),
        ]
    )
    assert erased_mask(erased, events).tolist() == [True, False, False, True, True, False, False, True]
    assert not erased_mask(ERASED_SCHEMA.empty_table(), events).any()
    assert erased_mask(erased, events.slice(0, 0)).shape == (0,)


def test_a_malformed_record_that_names_the_user_loses_its_content(tmp_path):
    """Its body is kept to be read again after a fix; "7" is not named by 70, nor by an id with a 7 in it."""
    store, user = EventStore(tmp_path), "7"
    bodies = [b'{"user_id": "7", "item_id": 1}', b"\x02\x027\x02", b'{"user_id": 70}', b'{"user_id": "a7"}']
    broken = rows([None] * 4).append_column("reason", pa.array(["malformed"] * 4))
    kept = [[("body", base64.b64encode(body).decode()), ("error", "?")] for body in bodies]
    index = broken.schema.get_field_index("attributes")
    field = broken.schema.field(index)
    broken = broken.set_column(index, field, pa.array(kept, field.type))
    store.append(rows([]), rejected=broken, offsets={0: (0, 4)})
    assert erase(store, [user], now_ms=ERASED_MS).rejected == 2
    rejected = store.read_rejected().sort_by("offset")
    assert rejected["reason"].to_pylist() == ["erased", "erased", "malformed", "malformed"]
    assert [bool(a) for a in rejected["attributes"].to_pylist()] == [False, False, True, True]


def test_users_are_erased_from_the_cold_table(tmp_path):
    store = filled(tmp_path)
    archive(store, before=date(2026, 2, 1))
    assert erase(store, [USER], now_ms=ERASED_MS).events == 3
    assert places_of(store) == [0, 1, 2, 3, 4, 5]
    assert_gone(store, tmp_path)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("step", range(9))
def test_an_erasure_that_was_killed_is_repeated(tmp_path, monkeypatch, step, cold):
    """Killed before its `step`th commit, and, for the last ones, before files are deleted."""
    store = filled(tmp_path)
    if cold:
        archive(store, before=date(2026, 2, 1))
    commits = []

    def killing(real):
        def commit(*arguments, **options):
            if len(commits) == step:
                raise KeyboardInterrupt
            commits.append(real)
            return real(*arguments, **options)

        return commit

    with monkeypatch.context() as patch:
        for name in ("append", "exchange"):
            patch.setattr(StoreTable, name, killing(getattr(StoreTable, name)))
        patch.setattr(maintenance, "vacuum", killing(maintenance.vacuum))
        try:
            erase(store, [USER], now_ms=ERASED_MS)
        except KeyboardInterrupt:
            assert step < 9
        else:
            assert step > 5
    store.append(rows([USER, "v"], start=6), offsets={0: (6, 8)})
    erase(store, [USER], now_ms=ERASED_MS)
    assert places_of(store) == [*range(8)]
    assert_gone(store, tmp_path)


@pytest.mark.parametrize("step", range(9))
def test_what_a_killed_retry_left_in_both_tables_is_erased_once(tmp_path, monkeypatch, step):
    """And the erasure is killed too, before its `step`th commit; then the retry is repeated, or not."""
    store = filled(tmp_path)

    def killed(*_, **__):
        raise KeyboardInterrupt

    fixed = {"topic": "events", "partitions": 1, "decoder": Decoder(), "validation": ValidationSettings()}
    with monkeypatch.context() as patch:
        patch.setattr(StoreTable, "rewrite", killed)
        with pytest.raises(KeyboardInterrupt):
            retry_rejected(store, **fixed)
    assert places_of(store) == [0, 1, 2, 3, 4, 4, 5, 5]
    commits = []

    def killing(real):
        def commit(*arguments, **options):
            if len(commits) == step:
                raise KeyboardInterrupt
            commits.append(real)
            return real(*arguments, **options)

        return commit

    with monkeypatch.context() as patch:
        for name in ("append", "exchange"):
            patch.setattr(StoreTable, name, killing(getattr(StoreTable, name)))
        with suppress(KeyboardInterrupt):
            erase(store, [USER], now_ms=ERASED_MS)
    if step % 2:
        retry_rejected(store, **fixed)
        assert places_of(store) == [0, 1, 2, 3, 4, 5]
    erase(store, [USER], now_ms=ERASED_MS)
    retry_rejected(store, **fixed)
    assert places_of(store) == [0, 1, 2, 3, 4, 5]
    assert_gone(store, tmp_path)


def test_a_commit_on_its_way_during_an_erasure_does_not_bring_the_user_back(tmp_path, monkeypatch):
    """It read the list of the erased before; it is made to fail, and is made again without the user."""
    store = filled(tmp_path)
    commit, done = EventStore._commit, []

    def interrupted(self, table, *arguments, **options):
        if table is self.events and not done:  # the rejected events are committed, the events are not
            done.append(erase(EventStore(tmp_path), [USER], now_ms=ERASED_MS))
        return commit(self, table, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(EventStore, "_commit", interrupted)
        store.append(rows(["v", USER], start=6), rejected=refused([USER], start=8), offsets={0: (6, 9)})
    assert places_of(store) == [*range(9)]
    assert store.committed("events", 1) == {0: 9}
    assert_gone(store, tmp_path, commits_failed=True)


def test_erasures_beside_a_writer_and_compaction(tmp_path):
    store, ended, errors = filled(tmp_path), threading.Event(), []

    def writing():
        try:
            writer = EventStore(tmp_path)
            while not ended.is_set():
                start = writer.committed("events", 1)[0]
                batch = rows([USER, "v", f"u{start}"], start=start)
                writer.append(
                    batch, rejected=refused([USER], start=start + 3), offsets={0: (start, start + 4)}
                )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=writing)
    thread.start()
    gone = 0
    for number in range(4):
        end = store.committed("events", 1)[0] + 8
        while store.committed("events", 1)[0] < end and not errors:
            time.sleep(0.01)
        gone += erase(store, [USER if number == 2 else f"u{end - 4 + 2}"], now_ms=ERASED_MS + number).events
        compact(store)
    ended.set()
    thread.join()
    assert not errors, errors
    assert gone > 3
    assert places_of(store) == [*range(store.committed("events", 1)[0])]
    assert_gone(store, tmp_path, commits_failed=True)


def test_a_log_of_an_older_version_forgets_ids_too(tmp_path):
    """It keeps the smallest and the largest user id of every file."""
    events = decode_events(
        [{"event_id": n, "user_id": u, "timestamp": "2026-01-01"} for n, u in zip("ab", ("v", USER))]
    )
    reason = pa.array(["missing_item"] * 2)
    for name, table in (("events", events), ("rejected", events.append_column("reason", reason))):
        month = pa.array(["2026-01"] * 2)
        write_deltalake(tmp_path / name, table.append_column("month", month), partition_by=["month"])
        DeltaTable(tmp_path / name).create_checkpoint()
    assert any(USER in entry.read_text() for entry in tmp_path.rglob("*.json"))
    store = EventStore(tmp_path)
    assert erase(store, [USER], now_ms=ERASED_MS).events == 1
    assert_gone(store, tmp_path)
    store.append(rows(["v", "w"]), offsets={0: (0, 2)})
    assert len(store.read()) == 3


def test_erasing_from_an_empty_store_is_remembered(tmp_path):
    store = EventStore(tmp_path)
    assert erase(store, [USER], now_ms=ERASED_MS).events == 0
    assert store.append(rows([USER, "v"]), offsets={0: (0, 2)}).stored == 1
