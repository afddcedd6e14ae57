import json
import random
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import SettingsError, UnavailableError
from recsys.events.codec import decode_events
from recsys.events.schema import CONTEXT, EVENT_SCHEMA
from recsys.events.wire import Decoder, encode
from recsys.events.writer_schemas import FRAME, event_schema, frame_of

FULL = {
    "event_id": "e",
    "user_id": "ü",
    "item_id": "i",
    "event_type": "purchase",
    "timestamp": "2026-01-01T00:00:00.000001Z",
    "value": 1.5,
    "currency": "EUR",
    "quantity": -3,
    "order_id": "o",
    "context": {
        "device": "tv",
        "session_id": "s",
        "page": "p",
        "position": 2,
        "slate_id": "x",
        "country": "GB",
    },
    "attributes": {"b": "2", "a": ""},
}
BODIES = [FULL, {}, {"context": {}}, {"attributes": {}}, {"user_id": "", "context": {"page": None}}]


def test_what_is_encoded_is_decoded():
    events = decode_events(BODIES * 50)
    read, errors = Decoder()(encode(events))
    assert errors == [None] * len(events)
    assert read.schema.equals(EVENT_SCHEMA)
    assert read.equals(events)
    assert read["attributes"].to_pylist() == events["attributes"].to_pylist()
    assert Decoder()([])[0].equals(EVENT_SCHEMA.empty_table())


def test_the_avro_is_that_of_another_library():
    """By way of columns and of rows the same bytes; also of a slice, and of what hides beneath a null."""
    bodies = [*BODIES, {"value": -0.0, "quantity": -(2**31)}, {"quantity": 2**31 - 1, "item_id": "ü" * 9000}]
    events = decode_events(bodies * 3)
    hidden = pa.StructArray.from_arrays(
        [
            pa.array(["x"] * 21, f.type) if f.type == pa.string() else pa.array([1] * 21, f.type)
            for f in CONTEXT
        ],
        fields=list(CONTEXT),
        mask=pa.array([n % 2 == 0 for n in range(21)]),
    )
    index = EVENT_SCHEMA.get_field_index("context")
    hiding = events.set_column(index, EVENT_SCHEMA.field(index), hidden)
    for table in (events, events.slice(3, 9), hiding, hiding.slice(5), pa.concat_tables([events, hiding])):
        rows = table.set_column(4, "timestamp", table["timestamp"].cast(pa.int64())).to_pylist()
        for row in rows:
            if row["attributes"] is not None:
                row["attributes"] = [{"key": key, "value": value} for key, value in row["attributes"]]
        assert encode(table) == [written(event_schema(), row) for row in rows]
    assert encode(events.slice(0, 0)) == []


def test_the_schema_file_is_the_contract():
    """The Avro file and the Arrow schema say the same fields, in the same order."""
    kinds = {"string": pa.string(), "double": pa.float64(), "int": pa.int32()}

    def names(fields):
        return [field["name"] for field in fields]

    fields = event_schema()["fields"]
    assert names(fields) == EVENT_SCHEMA.names
    assert all(field["type"][0] == "null" and field["default"] is None for field in fields)  # may be absent
    for field in fields:
        kind = field["type"][1]
        if isinstance(kind, str):
            assert EVENT_SCHEMA.field(field["name"]).type == kinds[kind]
    context = fields[names(fields).index("context")]["type"][1]["fields"]
    assert [(f["name"], kinds[f["type"][1]]) for f in context] == [(f.name, f.type) for f in CONTEXT]


def test_the_frame_is_the_specifications():
    """Avro 1.11, single-object encoding: C3 01, then CRC-64-AVRO in little endian."""
    assert frame_of("int") == bytes.fromhex("c301") + (0x7275D51A3F395C8F).to_bytes(8, "little")
    assert encode(decode_events([FULL]))[0].startswith(frame_of(event_schema()))


NEWER = event_schema() | {
    "fields": [*event_schema()["fields"], {"name": "channel", "type": ["null", "string"], "default": None}]
}
OLDER = event_schema() | {"fields": [f for f in event_schema()["fields"] if f["name"] != "order_id"]}


def written(schema, row) -> bytes:
    import io

    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), row)
    return frame_of(schema) + body.getvalue()


@pytest.mark.parametrize("schema", [NEWER, OLDER], ids=["newer producer", "older producer"])
def test_another_version_is_read_by_its_schema(tmp_path, schema):
    """Both ways: what we don't know is dropped, what they don't know is null."""
    row = {"event_id": "e", "user_id": "u", "channel": "app", "context": {"position": 1}, "timestamp": 5}
    body = written(schema, row)
    ours = encode(decode_events([FULL]))[0]
    events, errors = Decoder()([ours, body])
    assert errors[0] is None
    assert "no schema has the fingerprint" in errors[1]
    (tmp_path / "other.avsc").write_text(json.dumps(schema))
    events, errors = Decoder(str(tmp_path))([ours, body])
    assert errors == [None, None]
    assert (
        events.slice(1).to_pylist()
        == decode_events(
            [
                {
                    "event_id": "e",
                    "user_id": "u",
                    "context": {"position": 1},
                    "timestamp": "1970-01-01T00:00:00.000005Z",
                }
            ]
        ).to_pylist()
    )


def test_a_newer_reader_reads_us(tmp_path):
    """The reverse: a reader of the newer schema, with ours as the writer's, by any Avro library."""
    import io

    body = encode(decode_events([FULL]))[0]
    read = fastavro.schemaless_reader(
        io.BytesIO(body[10:]), fastavro.parse_schema(event_schema()), fastavro.parse_schema(NEWER)
    )
    assert (read["user_id"], read["channel"]) == ("ü", None)


class Registry(BaseHTTPRequestHandler):
    """A schema registry's one route that readers use."""

    def do_GET(self):
        number = int(self.path.removeprefix("/schemas/ids/"))
        status, answer = self.server.answers.get(number, (404, {"error_code": 40403}))
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)
        self.server.asked.append(self.path)

    def log_message(self, *_):
        pass


@pytest.fixture
def registry():
    server = HTTPServer(("127.0.0.1", 0), Registry)
    server.answers, server.asked = {7: (200, {"schema": json.dumps(FOREIGN)})}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


FOREIGN = {
    "type": "record",
    "name": "Click",
    "namespace": "com.shop",
    "fields": [
        {"name": "user_id", "type": "string"},
        {"name": "item_id", "type": "string"},
        {"name": "event_type", "type": {"type": "enum", "name": "Kind", "symbols": ["click", "view"]}},
        {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "attributes", "type": {"type": "map", "values": "string"}},
        {"name": "internal", "type": "int"},
    ],
}
CLICK = {
    "user_id": "u",
    "item_id": "i",
    "event_type": "view",
    "timestamp": 1000,
    "attributes": {"k": "v"},
    "internal": 1,
}


def framed_by_id(number: int) -> bytes:
    return b"\x00" + number.to_bytes(4, "big") + written(FOREIGN, CLICK)[10:]


def test_a_schema_registry_and_a_folder_give_schemas_by_id(tmp_path, registry):
    expected = decode_events(
        [
            {
                "user_id": "u",
                "item_id": "i",
                "event_type": "view",
                "timestamp": "1970-01-01T00:00:01",
                "attributes": {"k": "v"},
            }
        ]
    )
    url = f"http://127.0.0.1:{registry.server_port}"
    (tmp_path / "7.avsc").write_text(json.dumps(FOREIGN))
    for schemas in (url, str(tmp_path)):
        events, errors = Decoder(schemas)([framed_by_id(7), framed_by_id(8)])
        assert errors[0] is None
        assert "no schema has the id 8" in errors[1]
        assert events.slice(0, 1).equals(expected)


UNUSABLE = {
    20: {"schema": 'syntax = "proto3"; message Click {}', "schemaType": "PROTOBUF"},
    21: {"schema": '{"type": "object", "properties": {}}', "schemaType": "JSON"},
    22: {"schema": '{"type": "string"}', "schemaType": "JSON"},
    23: {
        "schema": json.dumps(FOREIGN | {"fields": [{"name": "user", "type": "com.shop.User"}]}),
        "references": [],
    },
    24: {"schema": '{"type": "record", "name": "A"}'},
    25: {"schema": '{"type": "record", "name": "A-b", "fields": []}'},
    26: {"schema": "7"},
    27: {"schema": None},
    28: {},
    29: "a page to log in",
}


def test_what_a_registry_gives_and_is_no_schema_makes_records_malformed(registry):
    registry.answers |= {number: (200, answer) for number, answer in UNUSABLE.items()}
    decoder = Decoder(f"http://127.0.0.1:{registry.server_port}")
    bodies = [framed_by_id(number) for number in UNUSABLE]
    events, errors = decoder([*bodies, framed_by_id(7)])
    assert [error is None for error in errors] == [*[False] * len(UNUSABLE), True]
    assert events["user_id"].to_pylist() == [*[None] * len(UNUSABLE), "u"]


def test_a_registry_is_asked_once(registry):
    """In a batch for what it does not have, for ever for what it has."""
    decoder = Decoder(f"http://127.0.0.1:{registry.server_port}/")
    for _ in range(2):
        decoder([framed_by_id(number) for number in (7, 8, 7, 8, 8)])
    assert sorted(registry.asked) == ["/schemas/ids/7", "/schemas/ids/8", "/schemas/ids/8"]
    registry.answers[8] = registry.answers[7]
    assert decoder([framed_by_id(8)])[1] == [None]


def test_a_registry_that_does_not_answer_is_no_fault_of_the_records(registry):
    url = f"http://me:secret@127.0.0.1:{registry.server_port}"
    for status in (301, 401, 403, 500, 503):
        registry.answers[9] = (status, {})
        with pytest.raises(UnavailableError, match=rf"http://\*\*\*@127.* gives no schema \(HTTP {status}"):
            Decoder(url)([framed_by_id(9)])
    for wrong in ("http://me:secret@127.0.0.1:1", "ftp://me:secret@host", "http://me:sec/ret@host"):
        with pytest.raises(UnavailableError, match="gives no schema") as told:
            Decoder(wrong)([framed_by_id(9)])
        assert "secret" not in str(told.value)
    assert "secret" not in Decoder(url)([framed_by_id(8)])[1][0]


def mixed_bodies():
    """Good ones, broken ones, and ones that make each other look good or broken."""
    frame, field = frame_of(event_schema()), EVENT_SCHEMA.field("attributes")
    twice = pa.array([[("a", "1"), ("a", "2")]], field.type)
    times = [0, -1, 2**62, -(2**62), 253_402_300_800_000_000, -62_135_596_800_000_001]
    ours = st.sampled_from(encode(decode_events(BODIES)))
    others = st.sampled_from(
        [written(NEWER, FULL_ROW), written(FOREIGN, CLICK), framed_by_id(7), framed_by_id(8)]
    )
    texts = [json.dumps(body) for body in (*BODIES, {"user_id": 7}, {"user_id": "u", "price": 1}, 3)]
    special = [
        *(written(event_schema(), {"timestamp": time}) for time in times),
        encode(decode_events([FULL]).set_column(10, field, [twice]))[0],
        *(frame, frame + b"\x00\x02\x14"),  # as if it went on in the next, and ended where that one should
        *(text.encode() for text in texts),
    ]
    some, few, place = ours | others, st.binary(max_size=2), st.integers(0, 60)
    return st.one_of(
        ours,
        others,
        st.sampled_from(special),
        st.binary(max_size=12),
        st.builds(lambda body, more: body + more, some, st.binary(min_size=1, max_size=20) | ours),
        st.builds(lambda body, cut: body[: 5 + cut], some, place),
        st.builds(lambda body, at, by: body[:at] + by + body[at + 1 :], some, place, few),
    )


FULL_ROW = {"event_id": "e", "user_id": "u", "channel": "app", "context": {"position": 1}, "timestamp": 5}


@settings(max_examples=300, deadline=None)
@given(st.lists(mixed_bodies(), max_size=12))
def test_what_becomes_of_a_body_does_not_depend_on_the_others(folder, bodies):
    decoder = Decoder(str(folder))
    events, errors = decoder(bodies)
    assert events.schema.equals(EVENT_SCHEMA)
    alone = [decoder([body]) for body in bodies]
    assert errors == [error for _, (error,) in alone]
    assert repr(events.to_pylist()) == repr([row for event, _ in alone for row in event.to_pylist()])  # NaN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "7.avsc").write_text(json.dumps(FOREIGN))
    (folder / "newer.avsc").write_text(json.dumps(NEWER))
    return folder


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (encode(decode_events([FULL]))[0] + b"x", "not exactly one event"),
        (encode(decode_events([FULL]))[0] * 2, "not exactly one event"),
        (encode(decode_events([{"user_id": "abc"}]))[0].replace(b"abc", b"a\xffc"), "not exactly one event"),
    ],
)
def test_a_broken_record_of_ours_is_told_wherever_it_stands(body, told):
    good = encode(decode_events([FULL]))[0]
    for place in range(3):
        bodies = [good, good]
        bodies.insert(place, body)
        events, errors = Decoder()(bodies)
        assert [error is None for error in errors] == [place != n for n in range(3)]
        assert errors[place].startswith(told)
        assert events["user_id"].null_count == 1


def test_what_others_know_beyond_us_is_dropped_from_json_as_from_avro():
    body = json.dumps(FULL | {"price": 1, "context": FULL["context"] | {"app": {"version": 3}}}).encode()
    events, errors = Decoder()([body])
    assert errors == [None]
    assert events.equals(decode_events([FULL]))
    assert "unknown field 'price'" in Decoder(strict=True)([body])[1][0]


def test_one_broken_record_costs_few_parses(monkeypatch):
    good = encode(decode_events([FULL]))[0]
    decoder, parses = Decoder(), []
    at_once = decoder._at_once
    monkeypatch.setattr(decoder, "_at_once", lambda bodies: (parses.append(len(bodies)), at_once(bodies))[1])
    bodies = [good] * 20_000
    bodies[1234] += b"x"
    events, errors = decoder(bodies)
    assert [n for n, error in enumerate(errors) if error] == [1234]
    assert events["user_id"].null_count == 1
    assert len(parses) < 35


def test_json_of_others_and_broken_records_keep_their_place():
    good = encode(decode_events([FULL]))[0]
    bodies = [
        good,
        json.dumps(FULL).encode(),
        good[:-1],
        good + b"x",
        b"",
        b"\xff\xfe",
        b"[1]",
        b"\x00\x00",
        FRAME,
        good,
    ]
    events, errors = Decoder()(bodies)
    assert [error is None for error in errors] == [True, True, *[False] * 7, True]
    assert events["user_id"].to_pylist() == ["ü", "ü", *[None] * 7, "ü"]
    kept = [dict(a) for a in events["attributes"].to_pylist()[2:9]]
    import base64

    assert [base64.b64decode(k["body"]) for k in kept] == bodies[2:9]
    assert all(k["error"] for k in kept)


@pytest.mark.parametrize("seed", range(4))
def test_hostile_bytes_harm_no_neighbor(seed, capfd):
    """Whatever a body holds, the others are read as they were written, and nothing ends the process."""
    rng = random.Random(seed)
    events = decode_events([FULL | {"event_id": f"e{n}", "attributes": {"n": "x" * n}} for n in range(6)])
    bodies = encode(events)
    for _ in range(150):
        broken = [bytearray(body) for body in bodies]
        victim = rng.randrange(6)
        match rng.randrange(4):
            case 0:
                broken[victim][rng.randrange(10, len(broken[victim]))] = rng.randrange(256)
            case 1:
                del broken[victim][rng.randrange(10, len(broken[victim])) :]
            case 2:
                broken[victim][rng.randrange(10, len(broken[victim])) :] = b"\xff" * 9 + b"\x7f"
            case _:
                broken[victim] += rng.randbytes(rng.randint(1, 40))
        read, errors = Decoder()([bytes(body) for body in broken])
        others = [n for n in range(6) if n != victim]
        assert [errors[n] for n in others] == [None] * 5
        assert read.take(others).equals(events.take(others))


@pytest.mark.parametrize("text", ["not json", '{"type": "nonsense"}'])
def test_a_folder_without_schemas_is_refused(tmp_path, text):
    with pytest.raises(SettingsError, match=r"no \*\.avsc"):
        Decoder(str(tmp_path))
    (tmp_path / "a.avsc").write_text(text)
    with pytest.raises(SettingsError, match="no Avro schema"):
        Decoder(str(tmp_path))
