"""The one hash: frozen for ever, even, and different under every salt."""

import subprocess
import sys

import numpy as np
from scipy import stats

from recsys.hashing import shard_of_rows, stable_hash, stable_hashes

# Frozen: stored order hashes, bus partitions, arms and index shards depend on them.
HASHES = {
    ("12347", "order"): 10617859604431210372,
    ("", "order"): 15246429953917100258,
    ("12347", ""): 6028174046361032333,
    ("ü", "a salt of more than sixteen bytes"): 17747111748060358374,
}
SHARDS = {
    2: [1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1],
    7: [2, 2, 4, 2, 6, 3, 3, 2, 4, 2, 1, 1, 1, 2, 5, 0],
}


def test_known_answers():
    assert {key: stable_hash(key[0], salt=key[1]) for key in HASHES} == HASHES
    assert {n: shard_of_rows(np.arange(16), n).tolist() for n in SHARDS} == SHARDS


def test_another_process_says_the_same():
    code = "from recsys.hashing import stable_hash; print(stable_hash('12347', salt='order'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) == stable_hash("12347", salt="order")


def test_many_at_once_are_the_same():
    texts = ["", "a", "12347", "ü", "a" * 1000]
    for salt in ("", "order", "a salt of more than sixteen bytes"):
        many = stable_hashes(texts, salt=salt)
        assert many.dtype == np.uint64
        assert many.tolist() == [stable_hash(text, salt=salt) for text in texts]
    assert len(stable_hashes([], salt="x")) == 0


def test_long_salts_are_not_cut():
    first, second = "experiments of the ranking stage: a", "experiments of the ranking stage: b"
    assert stable_hash("u", salt=first) != stable_hash("u", salt=second)
    # all of 16 bytes and 17 bytes count, in bytes of UTF-8
    assert (
        len({stable_hash("u", salt=salt) for salt in ("a" * 15, "a" * 16, "a" * 17, "ü" * 8, "ü" * 9)}) == 5
    )


def test_shards_are_even():
    for shards in (1, 2, 3, 8, 64):
        counts = np.bincount(shard_of_rows(np.arange(100_000), shards), minlength=shards)
        assert len(counts) == shards
        if shards > 1:
            assert stats.chisquare(counts).pvalue > 1e-4
    assert shard_of_rows(np.arange(5), 1).tolist() == [0] * 5


def test_buckets_are_even_and_salts_independent():
    users = [str(number) for number in range(20_000)]
    one, two = (stable_hashes(users, salt=salt) % 10 for salt in ("one", "two"))
    assert stats.chisquare(np.bincount(one.astype(int))).pvalue > 1e-4
    assert stats.chi2_contingency(stats.contingency.crosstab(one, two).count).pvalue > 1e-4
