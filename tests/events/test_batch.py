import numpy as np
import pytest

from recsys.events.batch import append_ms, judge
from recsys.events.bus import Records
from recsys.events.codec import decode_events
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder, encode

BODY = {"user_id": "u", "item_id": "i", "event_type": "click", "timestamp": "2026-01-01T00:00:00Z"}
TAKEN = np.array([1_790_000_000_001, 1_790_000_000_002, 1_790_000_000_003])


@pytest.fixture
def batch():
    events = decode_events([BODY | {"event_id": event_id} for event_id in ("e", "  ", "\u3000")])
    bodies = [*encode(events), encode(decode_events([BODY]))[0], b'{"event_id": ""}', b"broken"]
    taken = np.append(TAKEN, [1_790_000_000_004] * 3)
    records = Records(2, np.array([5, 6, 7, 8, 9, 10]), taken, bodies, 12)
    validation = ValidationSettings()
    return judge(records, start=4, topic="t", decoder=Decoder(), validation=validation)


def test_an_id_that_is_absent_or_blank_is_made_of_the_place_on_the_bus(batch):
    assert batch.events["event_id"].to_pylist() == ["e", "t-2-6", "t-2-7", "t-2-8", "t-2-9", "t-2-10"]
    assert batch.reason.to_pylist() == [None] * 4 + ["missing_user", "malformed"]


def test_it_says_where_and_when(batch):
    assert (batch.partition, batch.start, batch.end) == (2, 4, 12)
    assert batch.offsets.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.append_ms.tolist() == append_ms(batch.events).tolist()
    assert append_ms(batch.events.slice(0, 3)).tolist() == TAKEN.tolist()
