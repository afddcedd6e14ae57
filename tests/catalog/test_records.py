"""What a record of the changelog says, and what is none."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.catalog.changelog import Change, Claim, decode_change, encode_change
from recsys.errors import DataError

VECTOR = np.array([0.25, -1.5, 3.0], np.float32)


def test_a_change_comes_back_as_it_was_written():
    for change in (
        Change(
            "ä/1", 7, Claim("b", 7), "upsert", {"title": "Ä", "tags": ["x"], "price": 1.5}, {"space": VECTOR}
        ),
        Change("b", 0, None, "delete"),
    ):
        read = decode_change(encode_change(change))
        assert replace(read, vectors={}) == replace(change, vectors={})
        assert read.vectors.keys() == change.vectors.keys()
        for space, vector in read.vectors.items():
            assert vector.dtype == np.float32
            np.testing.assert_array_equal(vector, change.vectors[space])


GOOD = encode_change(Change("a", 1, None, "upsert", {"item_id": "a"}, {"s": VECTOR}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing",
        b"[]",
        b"{}",
        b"null",
        GOOD[:-1],
        GOOD.replace(b'"version":1', b'"version":2'),
        GOOD.replace(b'"row":1', b'"row":-1'),
        GOOD.replace(b'"row":1', b'"row":true'),
        GOOD.replace(b'"row":1', b'"row":1.0'),
        GOOD.replace(b'"claim":null', b'"claim":true'),
        GOOD.replace(b'"claim":null', b'"claim":{"batch":"b"}'),
        GOOD.replace(b'"claim":null', b'"claim":{"batch":"b","base":"1"}'),
        GOOD.replace(b'"claim":null', b'"claim":{"batch":1,"base":1}'),
        GOOD.replace(b'"upsert"', b'"rename"'),
        GOOD.replace(b'"upsert"', b'"delete"'),
        GOOD.replace(b'"item_id":"a","row"', b'"item_id":"","row"'),
        GOOD.replace(b'{"s":"', b'{"s":"x'),
        encode_change(Change("a", 1, None, "upsert", {}, {"s": np.array([np.nan], np.float32)})),
        encode_change(Change("a", 1, None, "upsert", {}, {"s": np.zeros(0, np.float32)})),
    ],
)
def test_a_record_that_is_none_is_refused(body):
    with pytest.raises(DataError, match="can't be read"):
        decode_change(body)
