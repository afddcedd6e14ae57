"""The registry on MLflow's real SQLite store."""

import subprocess
import sys
from pathlib import Path

import pytest

from recsys.errors import ReleaseError, UnavailableError
from recsys.releases.registry import Registry


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests, since creating its tables takes a second; each test has a name in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"


@pytest.fixture
def registry(database: str, request: pytest.FixtureRequest) -> Registry:
    return Registry(database, name=request.node.name)


def test_a_release_comes_back_as_it_was_registered(registry: Registry) -> None:
    version = registry.register(
        "r-1", uri="file:///releases/r-1", metrics={"ndcg@10": 0.41, "recall@100": 1 / 3}, tags={"by": "job"}
    )
    registry.set_alias("challenger", version=version)
    for found in (registry.resolve("challenger"), registry.versions()[0]):
        assert (found.version, found.release_id, found.uri) == (1, "r-1", "file:///releases/r-1")
        assert found.metrics == {"ndcg@10": 0.41, "recall@100": 1 / 3}
        assert found.tags == {"by": "job"}
        assert found.aliases == ("challenger",)
        assert found.created > 1_600_000_000


def test_nothing_registered_is_no_error_until_somebody_asks_for_it(registry: Registry) -> None:
    assert registry.versions() == []
    with pytest.raises(ReleaseError, match=r"no release .* is 'champion' .* promote"):
        registry.resolve("champion")
    with pytest.raises(ReleaseError, match=r"'challenger'"):
        registry.promote()


def test_registering_again_gives_the_same_version(registry: Registry) -> None:
    assert registry.register("r-1", uri="s3://bucket/r-1") == 1
    assert registry.register("r-2", uri="s3://bucket/r-2") == 2
    assert registry.register("r-1", uri="s3://bucket/r-1") == 1
    with pytest.raises(
        ReleaseError, match=r"'r-1' .* version 1 at s3://bucket/r-1, not at s3://bucket/other"
    ):
        registry.register("r-1", uri="s3://bucket/other")
    assert [release.release_id for release in registry.versions()] == ["r-2", "r-1"]


def test_promotion_and_rollback_move_the_aliases(registry: Registry) -> None:
    for number in (1, 2, 3):
        registry.register(f"r-{number}", uri=f"/releases/r-{number}")
    registry.promote(1)
    with pytest.raises(ReleaseError, match="nothing to go back to"):
        registry.rollback()

    registry.set_alias("challenger", version=2)
    assert registry.promote().release_id == "r-2"
    with pytest.raises(ReleaseError, match="challenger"):
        registry.resolve("challenger")  # it won; nothing is on trial now
    assert registry.resolve("previous").release_id == "r-1"

    assert registry.promote(2).release_id == "r-2"  # again: nothing moves
    assert registry.resolve("previous").release_id == "r-1"

    assert registry.rollback().release_id == "r-1"
    assert registry.resolve("previous").release_id == "r-2"
    assert registry.rollback().release_id == "r-2"

    registry.set_alias("challenger", version=3)
    registry.promote(1)
    assert registry.resolve("challenger").release_id == "r-3"  # another one's promotion leaves it on trial
    assert [release.aliases for release in registry.versions()] == [
        ("challenger",),
        ("previous",),
        ("champion",),
    ]


def test_another_process_sees_the_same(registry: Registry) -> None:
    registry.register("r-1", uri="/releases/r-1")
    registry.promote(1)
    assert Registry(registry.uri, name=registry.name).resolve("champion").release_id == "r-1"


def test_an_unknown_version_moves_nothing(registry: Registry) -> None:
    registry.register("r-1", uri="/releases/r-1")
    registry.register("r-2", uri="/releases/r-2")
    registry.promote(1)
    registry.promote(2)
    for move in (lambda: registry.set_alias("champion", version=9), lambda: registry.promote(9)):
        with pytest.raises(ReleaseError, match="version 9 of"):
            move()
    assert registry.resolve("champion").version == 2
    assert registry.resolve("previous").version == 1


def test_an_unreachable_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    file = tmp_path / "file"
    file.write_text("no database")
    for uri in (
        "http://127.0.0.1:9",
        f"sqlite:///{file}",
        f"sqlite:///{file}/below.db",
        "carrier-pigeon://x",
    ):
        with pytest.raises(UnavailableError, match=r"check registry\.uri") as caught:
            Registry(uri).versions()
        assert uri in str(caught.value)
        assert "\n" not in str(caught.value)


def test_importing_costs_nothing() -> None:
    code = "import sys, recsys.releases.registry; print('mlflow' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
