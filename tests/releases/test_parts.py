"""A release on disk serves what the models in memory served."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from recsys.errors import ReleaseError
from recsys.pipeline.offline import PointInTimeUsers, batch_of
from recsys.pipeline.wiring import recommender
from recsys.releases.manifest import open_release, write_release
from recsys.releases.parts import load_parts, local_shards
from tests.world import ITEMS, NOW, release_parts, world

USERS = [f"u{user:03d}" for user in range(60)] + ["nobody"]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    written = write_release(folder, release_parts(world().parts, folder / "index"), as_of=NOW, items=ITEMS)
    return open_release(written.uri)


@pytest.mark.parametrize("scene", ["home", "discover"])
def test_the_slates_are_equal(release, scene):
    loaded = recommender(
        load_parts(release), users=PointInTimeUsers(world().interactions, NOW), shards=local_shards(release)
    )
    batch = batch_of(USERS, scene=scene, now=NOW, n=20)
    batch = replace(batch, country=tuple((None, "ES", "FR")[r % 3] for r in range(len(batch))))
    left, right = (asyncio.run(service.recommend(batch)) for service in (world().recommender, loaded))
    for one, other in zip(left.slates, right.slates, strict=True):
        assert one.items == other.items
        assert (one.arms, one.degraded) == (other.arms, other.degraded)
    np.testing.assert_array_equal(left.candidates.removed_by, right.candidates.removed_by)
    np.testing.assert_array_equal(left.candidates.score, right.candidates.score)


def test_everything_comes_back(release):
    parts, loaded = world().parts, load_parts(release)
    assert loaded.items.equals(parts.items, null_equal=True)
    assert loaded.items.schema == parts.items.schema
    assert (loaded.rules, loaded.experiments, loaded.settings) == (
        parts.rules,
        parts.experiments,
        parts.settings,
    )
    for name, arrays in parts.snapshot.arrays().items():
        for key, array in arrays.items():
            found = loaded.snapshot.arrays()[name][key]
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
    features = np.random.default_rng(0).normal(size=(50, parts.rankers["home"].booster.num_features()))
    for name, ranker in parts.rankers.items():
        features = features.astype(np.float32)
        np.testing.assert_array_equal(loaded.rankers[name].score(features), ranker.score(features))


def test_encoding_twice_gives_the_same_bytes_and_so_the_same_release(release, tmp_path):
    again = write_release(
        tmp_path, release_parts(load_parts(release), tmp_path / "index"), as_of=NOW, items=ITEMS
    )
    assert again.manifest.parts == release.manifest.parts
    assert again.manifest.id == release.manifest.id


def test_shards_are_in_their_own_order(tmp_path):
    parts = release_parts(world().parts, tmp_path / "index", shards=12)
    many = write_release(tmp_path, parts, as_of=NOW, items=ITEMS)
    assert [shard.name for shard in local_shards(many)] == [str(n) for n in range(12)]
    known = world().parts.snapshot.vectors.any(axis=1)
    assert sum(len(shard.shard) for shard in local_shards(many)) == known.sum() > 0.9 * ITEMS


def test_a_release_without_the_ranker_of_a_scene_is_refused():
    parts = world().parts
    with pytest.raises(ReleaseError, match=r"scene 'discover' wants ranker 'discover': there are home"):
        replace(parts, rankers={"home": parts.rankers["home"]})


def test_a_release_whose_items_and_models_differ_is_refused():
    with pytest.raises(ReleaseError, match=f"has {ITEMS - 1} items, its models {ITEMS}"):
        replace(world().parts, items=world().parts.items[:-1])
