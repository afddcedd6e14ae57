"""Fitted models on disk: found again by their hash, refused when altered."""

import numpy as np
import pytest

from recsys.errors import ReleaseError
from recsys.models.factors.pairwise import Bpr
from recsys.training.stored import load_fitted, save_fitted
from tests.contracts.retrieval_model import ALL, log_of, pairs, queries_of


@pytest.fixture(scope="module")
def fitted():
    return Bpr(factors=4, epochs=5).fit(log_of(*pairs()), seed=1)


def test_what_is_loaded_scores_as_what_was_saved(fitted, tmp_path):
    path = save_fitted(tmp_path, fitted, model="bpr", settings="factors=4")
    queries = queries_of(log_of(*pairs()), ALL)
    np.testing.assert_array_equal(load_fitted(path).score(queries), fitted.score(queries))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_same_fit_is_the_same_file(fitted, tmp_path):
    again = Bpr(factors=4, epochs=5).fit(log_of(*pairs()), seed=1)
    paths = {save_fitted(tmp_path, f, model="bpr", settings="factors=4") for f in (fitted, again)}
    assert len(paths) == 1


@pytest.mark.parametrize("harm", ["cut", "changed", "absent"])
def test_what_is_not_whole_is_refused(fitted, tmp_path, harm):
    path = save_fitted(tmp_path, fitted, model="bpr", settings="")
    content = bytearray(path.read_bytes())
    if harm == "absent":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[:-100])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(ReleaseError, match="no model at" if harm == "absent" else "altered"):
        load_fitted(path)


def test_a_full_disk_leaves_no_half_file(fitted, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save_fitted(tmp_path, fitted, model="bpr", settings="")
    assert not list(tmp_path.iterdir())
