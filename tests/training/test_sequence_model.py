"""SASRec and GRU4Rec as retrieval models: the contract, and what only they promise."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from recsys.interactions import Interactions, Timing, interactions_from_pairs
from recsys.models.sequence.encoder import SequenceEncoder
from recsys.training.sequence_model import Gru4Rec, SasRec, SequenceModel
from tests.contracts.retrieval_model import RetrievalModelContract, log_of, pairs

SETTINGS = {"dimensions": 16, "window": 8, "token_buckets": 8, "batch": 64, "passes": 25, "warm_up": 10}
SAS = SasRec(learning_rate=0.01, dropout=0.1, event_dropout=0.1, **SETTINGS)  # type: ignore[arg-type]
GRU = Gru4Rec(learning_rate=0.02, dropout=0.1, event_dropout=0.1, **SETTINGS)  # type: ignore[arg-type]
MODELS = pytest.mark.parametrize("model", [SAS, GRU], ids=["sasrec", "gru4rec"])

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def fitted_on(model: SequenceModel, timing: Timing) -> SequenceEncoder:
    return model.fit(log_of(*pairs(), timing), seed=1)


class SequenceModelContract(RetrievalModelContract):
    model: SequenceModel
    renaming_noise = 0.1  # of three fits of chance batches

    @pytest.fixture
    def fitted(self, log):
        return fitted_on(self.model, log.timing)


class TestSasRec(SequenceModelContract):
    model = SAS


class TestGru4Rec(SequenceModelContract):
    model = GRU


def circles(users: int = 60, items: int = 12, length: int = 6) -> Interactions:
    """Everybody goes on from item i to i + 1, from somewhere: only the order tells what comes next."""
    start = np.random.default_rng(0).integers(0, items, users)
    item = (start[:, None] + np.arange(length)) % items
    user = np.repeat(np.arange(users), length)
    return interactions_from_pairs(user, item.ravel(), users=users, items=items, timing=Timing.SEQUENCE)


@MODELS
@pytest.mark.parametrize("full_softmax", [100, 0], ids=["full", "sampled"])
def test_it_learns_the_order_of_things(model, full_softmax):
    log = circles()
    fitted = replace(model, full_softmax=full_softmax, in_batch=16, uniform=6).fit(log, seed=0)
    one = log.histories.take(np.arange(12))
    from recsys.interactions import Queries

    scores = fitted.score(Queries(np.full(12, -1), one, np.zeros(12, np.int64)))
    last = one.item[one.offsets[1:] - 1]
    assert (scores.argmax(1) == (last + 1) % 12).mean() > 0.8
