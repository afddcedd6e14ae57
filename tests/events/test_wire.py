import json
import random
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import fastavro
import pyarrow as pa
import pytest

from recsys.errors import SettingsError, UnavailableError
from recsys.events.codec import decode_events
from recsys.events.schema import CONTEXT, EVENT_SCHEMA
from recsys.events.wire import FRAME, Decoder, encode, event_schema, frame_of

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
        known = self.path == "/schemas/ids/7"
        content = json.dumps({"schema": json.dumps(FOREIGN)} if known else {"error_code": 40403}).encode()
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


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


def test_a_schema_registry_and_a_folder_give_schemas_by_id(tmp_path):
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
    server = HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "7.avsc").write_text(json.dumps(FOREIGN))
    for schemas in (url, str(tmp_path)):
        events, errors = Decoder(schemas)([framed_by_id(7), framed_by_id(8)])
        assert errors[0] is None
        assert "no schema has the id 8" in errors[1]
        assert events.slice(0, 1).equals(expected)
    server.shutdown()
    server.server_close()
    with pytest.raises(UnavailableError, match="gives no schema"):
        Decoder(url)([framed_by_id(7)])


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
