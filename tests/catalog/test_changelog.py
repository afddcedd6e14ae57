"""Rows agree between all readers, however many write at once; what can't hold is void for all alike."""

import threading
import time
import uuid

import numpy as np
import pytest

from recsys.catalog.changelog import Change, Claim, Position, encode_change
from recsys.catalog.following import Follower, Tail
from recsys.catalog.writing import CatalogWriter
from recsys.errors import UnavailableError
from recsys.events.bus import BusSettings, open_bus
from recsys.events.redis_server import connect

BASE = {f"old{n}": n for n in range(10)}  # items of the release
START = Position(0, len(BASE))


@pytest.fixture
def settings(request, redis_url):
    url = request.getfixturevalue("kafka_url") if getattr(request, "param", "") == "kafka" else redis_url
    return BusSettings(url=url, topic=uuid.uuid4().hex).of_changelog("x")


both = pytest.mark.parametrize("settings", ["redis", "kafka"], indirect=True)


class Replica:
    """A reader that keeps what every reader must know: whose each row is, and what it has."""

    def __init__(self, settings: BusSettings, *, follows: bool = True, start: Position = START) -> None:
        self.rows, self.items, self.log = dict(BASE), {}, []
        self.bus = open_bus(settings)
        self.follower = Follower(self.bus, start=start, apply=self.apply)
        self.writer = CatalogWriter(open_bus(settings), follower=self.follower, row_of=self.rows.get)
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        if follows:
            self.thread.start()

    def apply(self, changes) -> None:
        for offset, change in changes:
            assert self.rows.setdefault(change.item_id, change.row) == change.row
            self.items[change.row] = None if change.kind == "delete" else change.item
            self.log.append((offset, change.item_id, change.row, change.kind))

    def run(self) -> None:
        while not self.done.is_set():
            self.follower.follow(block_ms=50)

    def close(self) -> None:
        self.done.set()
        self.thread.join()


@pytest.fixture
def replica(settings):
    made = []

    def make(**how) -> Replica:
        made.append(Replica(settings, **how))
        return made[-1]

    yield make
    for one in made:
        if one.thread.is_alive():
            one.close()


def item(name: str, **columns) -> dict:
    return {"item_id": name, "title": name.upper()} | columns


@both
def test_new_items_get_the_next_rows_and_known_ones_keep_theirs(replica):
    one, other = replica(), replica()
    assert one.writer.upsert([item("a"), item("old3"), item("b")]) == [10, 3, 11]
    assert one.rows["b"] == 11  # whoever wrote has read it
    assert other.follower.wait_for(2, timeout_s=5)
    assert other.writer.upsert([item("c"), item("a", price=2.0)]) == [12, 10]
    assert other.items[10] == item("a", price=2.0)
    assert one.writer.delete(["a", "nobody", "a"]) == {"a": 10}
    assert one.items[10] is None
    assert one.writer.upsert([item("a")]) == [10]  # deleted and added again: the same row
    assert one.items[10] == item("a")


@both
def test_rows_agree_however_many_write_at_once(replica):
    """Four writers, each adding its own items and all of them the same twenty."""
    writers, found = [replica() for _ in range(4)], {}

    def write(number: int) -> None:
        for n in range(20):
            names = [f"own{number}-{n}", f"shared{n}"]
            found[number, n] = writers[number].writer.upsert([item(name, by=number) for name in names])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    late = replica(follows=False)
    late.follower.catch_up(timeout_s=10)
    for one in writers:
        assert one.follower.wait_for(late.follower.position.offset - 1, timeout_s=5)
        assert (one.rows, one.items, one.log) == (late.rows, late.items, late.log)
    assert sorted(late.rows.values()) == list(range(10 + 4 * 20 + 20))
    for (number, n), (own, shared) in found.items():
        assert (late.rows[f"own{number}-{n}"], late.rows[f"shared{n}"]) == (own, shared)
    # Each upsert of a shared item holds, also of one who claimed it in vain and found it given.
    assert sum(name == "shared7" for _, name, _, _ in late.log) == 4


def test_what_can_not_hold_is_void_for_every_reader(settings, replica):
    bus, one = open_bus(settings), replica(follows=False)
    first, second, third = Claim("first", 10), Claim("second", 10), Claim("third", 12)
    bodies = [
        Change("a", 10, first, "upsert", item("a")),
        Change("b", 10, second, "upsert", item("b")),  # taken
        # Free, but its writer did not know that 10 is given, and so not that this item may have it:
        Change("a", 11, second, "upsert", item("a")),
        Change("c", 11, first, "upsert", item("c")),
        Change("d", 12, None, "delete"),  # of a row that nobody has
        Change("e", 13, third, "upsert", item("e")),  # not the next one
        Change("e", 12, third, "upsert", item("e")),
        Change("c", 11, None, "delete"),
    ]
    bus.append([encode_change(change) for change in bodies] + [b"noise"], partition=0)
    one.follower.catch_up(timeout_s=5)
    held = [(0, "a", 10), (3, "c", 11), (6, "e", 12), (7, "c", 11)]
    assert [entry[:3] for entry in one.log] == held
    assert list(one.follower.voided) == [1, 2, 4, 5]
    assert (one.follower.void, one.follower.unreadable) == (4, 1)
    assert one.follower.position == Position(9, 13, "third")


def test_readers_agree_wherever_they_start(settings, replica):
    """Also in the middle of a batch, without knowing whose the rows before are."""
    bus, one = open_bus(settings), replica(follows=False)
    random, places, written = np.random.default_rng(0), [], 0
    for turn in range(40):  # two write at a time, some without knowing the last row
        batches = []
        for writer in "xy":
            base = one.follower.position.rows - int(random.random() < 0.3)
            rows = range(base, base + int(random.integers(1, 4)))
            claim = Claim(f"{writer}{turn}", base)
            batches.append([Change(f"{writer}{turn}-{row}", row, claim, "upsert", {}) for row in rows])
        while any(batches):
            batch = batches[int(random.integers(2))]
            if batch:
                places.append(one.follower.position)
                bus.append([encode_change(batch.pop(0))], partition=0)
                written += 1
                one.follower.catch_up(timeout_s=5)
    assert 40 < len(one.log) < written
    for place in places[1::7]:
        late = replica(follows=False, start=place)
        late.follower.catch_up(timeout_s=5)
        assert late.log == [entry for entry in one.log if entry[0] >= place.offset]
        assert late.follower.position == one.follower.position


def test_a_reader_that_starts_late_catches_up_or_says_so(settings, replica):
    early = replica()
    for start in range(0, 3000, 500):
        early.writer.upsert([item(f"i{n}") for n in range(start, start + 500)])
    late = replica(follows=False)
    assert late.follower.behind() == 3000
    with pytest.raises(UnavailableError, match=r"was read to 0 of 3000 within -1 s"):
        late.follower.catch_up(timeout_s=-1)
    late.follower.catch_up(timeout_s=10)
    assert late.follower.behind() == 0
    assert (late.rows, late.follower.position.rows) == (early.rows, 3010)
    assert 0 <= late.follower.lag_s < 60


def test_a_writer_whose_reader_stands_still_says_so(settings, replica):
    still = replica(follows=False)
    writer = CatalogWriter(still.bus, follower=still.follower, row_of=still.rows.get, timeout_s=0.05)
    with pytest.raises(UnavailableError, match=r"was not read back within 0\.05 s"):
        writer.upsert([item("a")])
    still.follower.catch_up(timeout_s=5)
    assert still.rows["a"] == 10  # it was taken all the same
    assert writer.delete(["nobody"]) == {}


HARMFUL = [
    {"attributes": [None]},
    {"attributes": "red"},
    {"attributes": {"color": 1}},
    {"title": 5},
    {"tags": "mug"},
    {"tags": [["mug"]]},
    {"price": "dear"},
    {"min_age": 2**40},
    {"published_at": 1_700_000_000},
    {"published_at": "soon"},
    {"published_at": "2026-11-26T10:00:00"},  # of no zone
    {"expires_at": "9999-12-31T23:59:59-12:00"},  # of a year that Python has not
    {"color": "red"},
]


@pytest.mark.parametrize("together", [True, False])
def test_an_item_that_can_not_be_read_harms_no_reader(settings, replica, together):
    """However records come in batches: one that starts late reads many at once."""
    bus, one = open_bus(settings), replica(follows=False)
    good = {"title": "mug", "published_at": "2026-11-26T10:00:00Z", "attributes": {"color": "red"}}
    for number, harmful in enumerate(HARMFUL):
        changes = [
            Change(f"bad{number}", 10 + 2 * number, Claim(f"b{number}", 10 + 2 * number), "upsert", harmful),
            Change(f"good{number}", 11 + 2 * number, Claim(f"b{number}", 10 + 2 * number), "upsert", good),
        ]
        bus.append([encode_change(change) for change in changes], partition=0)
        if not together:
            one.follower.catch_up(timeout_s=5)
    one.follower.catch_up(timeout_s=5)
    for number in range(len(HARMFUL)):
        assert one.items[10 + 2 * number] == {"available": False}, HARMFUL[number]
        assert one.items[11 + 2 * number] == good


def test_a_tail_goes_on_after_an_outage_and_says_why_it_ended():
    class Log:
        def __init__(self, *answers) -> None:
            self.answers = list(answers)

        def tail(self, partitions, **how):
            if self.answers:
                raise self.answers.pop(0)
            time.sleep(0.01)
            return []

    read = threading.Event()
    follower = Follower(Log(UnavailableError("away")), start=START, apply=lambda changes: None)
    with Tail(follower, on_read=read.set) as tail:
        assert read.wait(10)
        tail.check()
        assert tail.outage is None
    follower = Follower(Log(ZeroDivisionError("a bug")), start=START, apply=lambda changes: None)
    tail = Tail(follower).start()
    tail._thread.join(10)
    with pytest.raises(RuntimeError, match="not followed any more: a bug"):
        tail.check()


def test_a_log_that_was_emptied_is_told_to_who_reads_and_who_writes(settings, replica):
    one = replica()
    one.writer.upsert([item("a"), item("b")])
    one.close()
    connect(settings.url).flushall()
    bus = open_bus(settings)
    with pytest.raises(UnavailableError, match=r"ends at 0, but 2 records"):
        Follower(bus, start=one.follower.position, apply=lambda changes: None).catch_up()
    writer = CatalogWriter(bus, follower=one.follower, row_of=one.rows.get)
    with pytest.raises(UnavailableError, match=r"was read to 2, but what was written now stands at 0"):
        writer.upsert([item("c")])
