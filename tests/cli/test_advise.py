"""`recsys advise`: the profile, the reasons, and one line of JSON last."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from recsys.cli import app
from recsys.errors import DataError, SettingsError


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """300 users who take ten of 200 items."""
    rng = np.random.default_rng(0)
    path = tmp_path / "shop [old].txt"
    path.write_text("\n".join(f"{u} {' '.join(map(str, rng.permutation(200)[:10]))}" for u in range(300)))
    return path


def advise(*arguments: object) -> tuple[str, dict]:
    result = CliRunner().invoke(app, ["advise", *map(str, arguments)])
    if result.exception:
        raise result.exception
    return result.stdout, json.loads(result.stdout.strip().splitlines()[-1])


def test_it_tells_the_profile_the_leaf_its_reasons_and_what_to_run(sequences):
    out, line = advise("--format", "sequences", "--path", sequences)
    assert line["profile"]["users"] == 300
    assert line["profile"]["timing"] == "sequence"
    assert line["decision"]["leaf"] == "a session model"
    assert line["decision"]["answers"] == "online"
    for reason in line["decision"]["reasons"]:
        assert reason in out
    assert f"recsys evaluate --format sequences --path '{sequences}' --model auto" in out


def test_what_is_needed_changes_the_advice(sequences):
    _, line = advise("--format", "sequences", "--path", sequences, "--split", "random", "--latency-ms", 20)
    assert line["decision"]["leaf"] == "linear and pairwise models"
    assert line["decision"]["answers"] == "precomputed"
    _, line = advise("--format", "sequences", "--path", sequences, "--split", "random", "--real-time")
    assert line["decision"]["leaf"] == "a session model"


def test_what_it_would_run_asks_for_repeats_too(sequences):
    out, _ = advise("--format", "sequences", "--path", sequences, "--repeats")
    assert "--model auto --repeats" in out


def test_bad_input_is_a_typed_error(sequences):
    with pytest.raises(SettingsError, match=r"--latency-ms 0"):
        advise("--format", "sequences", "--path", sequences, "--latency-ms", 0)
    with pytest.raises(DataError):
        advise("--format", "sequences", "--path", sequences.with_name("none.txt"))
