import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.events.codec import decode_events, encode_events

text = st.text(max_size=5)
events = st.fixed_dictionaries(
    {},
    optional={
        "event_id": text,
        "user_id": text,
        "event_type": text,
        "timestamp": st.datetimes().map(lambda t: t.isoformat()),
        "value": st.floats(allow_nan=False, allow_infinity=False),
        "quantity": st.integers(-(2**31), 2**31 - 1),
        "context": st.fixed_dictionaries({}, optional={"position": st.integers(-9, 9), "page": text}),
        "attributes": st.dictionaries(text, text, max_size=2),
    },
)


@settings(max_examples=80, deadline=None)
@given(st.lists(events, max_size=3))
def test_events_survive_the_bus(bodies):
    table = decode_events(bodies)
    assert decode_events(encode_events(table)).to_pylist() == table.to_pylist()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"quantity": "two"}, "'quantity' is 'two'"),
        ({"quantity": 1.5}, "'quantity' is 1.5"),
        ({"quantity": 2**31}, "32 bits"),
        ({"value": True}, "'value' is True"),
        ({"user_id": 7}, "'user_id' is 7"),
        ({"timestamp": 1700000000}, "ISO 8601"),
        ({"price": 1}, "unknown field 'price'"),
        ({"context": {"place": 1}}, "context.place"),
        ({"context": 3}, "an object"),
        ({"attributes": {"a": 1}}, "attributes.a"),
        (b"{broken", "not JSON"),
        ({"user_id": "\ud800"}, "valid Unicode"),
        (b"[]", "not a JSON object"),
    ],
)
def test_errors_name_the_field(body, message):
    with pytest.raises(DataError, match=message):
        decode_events([{}, body])
