import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.events.codec import decode_events, decode_json

text = st.text(max_size=5)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
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
def test_what_is_valid_is_taken_as_it_is(bodies):
    for body, row in zip(bodies, decode_events(bodies).to_pylist(), strict=True):
        given_ = {name: value for name, value in row.items() if value is not None}
        assert given_.keys() == body.keys()
        for name, value in body.items():
            if name == "timestamp":
                assert given_[name].replace(tzinfo=None).isoformat() == value
            elif name == "attributes":
                assert dict(given_[name]) == value
            elif name == "context":
                assert {n: v for n, v in given_[name].items() if v is not None} == value
            else:
                assert given_[name] == value


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["user_id", "timestamp", "value", "quantity", "context", "attributes", "price"]),
            scalars | st.dictionaries(st.sampled_from(["page", "position", "a"]), scalars, max_size=2),
            max_size=3,
        ),
        max_size=5,
    )
)
def test_each_event_is_judged_as_if_it_were_alone(bodies):
    table, errors = decode_json(bodies)
    for number, body in enumerate(bodies):
        alone, (error,) = decode_json([body])
        assert errors[number] == error
        assert repr(table.slice(number, 1).to_pylist()) == repr(alone.to_pylist())  # NaN is not NaN
        if error is not None:
            assert alone.equals(decode_events([{}]))


def test_an_error_of_the_caller_is_kept_and_a_message_stays_short():
    deep: list = []
    for _ in range(900):  # as deep as the parser lets through: repr() would fail
        deep = [deep]
    bodies = [DataError("no schema"), {"user_id": deep}, {"x" * 10_000: 1}, {"user_id": "u"}]
    table, errors = decode_json(bodies)
    assert errors[0] == "no schema"
    assert errors[3] is None
    assert all(error is None or len(error) < 300 for error in errors)
    assert table["user_id"].to_pylist() == [None, None, None, "u"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"quantity": "two"}, "'quantity' is 'two'"),
        ({"quantity": 1.5}, "'quantity' is 1.5"),
        ({"quantity": 2**31}, "32 bits"),
        ({"value": True}, "'value' is True"),
        ({"user_id": 7}, "'user_id' is 7"),
        ({"timestamp": 1700000000}, "ISO 8601"),
        ({"timestamp": "yesterday"}, "ISO 8601"),
        ({"price": 1}, "unknown field 'price'"),
        ({"context": {"place": 1}}, "context.place"),
        ({"context": 3}, "an object"),
        ({"attributes": {"a": 1}}, "{'a': 1} .* text to text"),
        ({"attributes": {"a": "\ud800"}}, "text to text"),
        ({"value": 2**2000}, "a number"),
        (b"{broken", "not JSON"),
        ({"user_id": "\ud800"}, "Unicode text"),
        (b"[]", "not a JSON object"),
    ],
)
def test_errors_name_the_field(body, message):
    with pytest.raises(DataError, match=f"^event 1: .*{message}"):
        decode_events([{}, body])
