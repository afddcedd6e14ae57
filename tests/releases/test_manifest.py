"""The release on disk: what was altered, lost or half written is refused by name."""

import json

import pytest

from recsys.errors import ReleaseError
from recsys.releases.manifest import open_release, write_release

PARTS = {"items.parquet": b"rows", "models/ease.npz": b"weights" * 100, "rules.json": b"[]"}


def write(folder, parts=PARTS, **facts):
    return write_release(folder, parts, **({"as_of": 5, "items": 3} | facts))


def test_a_release_comes_back_as_it_was_written(tmp_path):
    written = write(tmp_path, watermark={"table": 4}, evaluation={"ndcg@10": 0.5})
    opened = open_release(written.uri)
    assert opened.manifest.parts == written.manifest.parts
    assert (opened.manifest.id, opened.manifest.as_of, opened.manifest.items) == (written.manifest.id, 5, 3)
    assert opened.manifest.watermark == {"table": 4}
    assert opened.manifest.evaluation == {"ndcg@10": 0.5}
    assert opened.manifest.metric == "inner_product"
    assert {name: opened.path(name).read_bytes() for name in PARTS} == PARTS


def test_the_same_content_is_the_same_release(tmp_path):
    first = write(tmp_path)
    assert write(tmp_path, dict(reversed(PARTS.items()))).manifest.id == first.manifest.id
    assert write(tmp_path / "elsewhere").manifest.id == first.manifest.id
    assert write(tmp_path, PARTS | {"rules.json": b"[1]"}).manifest.id != first.manifest.id
    renamed = {("rules2.json" if n == "rules.json" else n): c for n, c in PARTS.items()}
    assert write(tmp_path, renamed).manifest.id != first.manifest.id


def test_shared_parts_are_written_once(tmp_path):
    first = write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    second = write(tmp_path, PARTS | {"rules.json": b"[1]"})
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert len(before) == 3
    assert len(after) == 4
    assert all(after[path] == time for path, time in before.items())
    assert first.path("items.parquet") == second.path("items.parquet")
    for release in (first, second):
        open_release(release.uri)
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]  # no draft is left


@pytest.mark.parametrize("name", PARTS)
def test_an_altered_part_is_refused_by_name(tmp_path, name):
    release = write(tmp_path)
    path = release.path(name)
    for content in (path.read_bytes() + b" ", path.read_bytes()[:-1], b""):
        path.write_bytes(content)
        with pytest.raises(ReleaseError, match=rf"'{name}' of release {release.manifest.id} was altered"):
            open_release(release.uri)


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_part_is_refused_by_name(tmp_path, name):
    release = write(tmp_path)
    release.path(name).unlink()
    with pytest.raises(ReleaseError, match=rf"{release.manifest.id} lacks part '{name}'"):
        open_release(release.uri)


def test_building_anew_mends_what_was_altered(tmp_path):
    """The message says "build it anew"; a part whose file was there was not written again, however wrong
    its bytes, so that building anew gave the same refusal for ever."""
    release = write(tmp_path)
    release.path("rules.json").write_bytes(b"altered")
    release.path("items.parquet").unlink()
    write(tmp_path)
    assert open_release(release.uri).path("rules.json").read_bytes() == b"[]"


def test_a_truncated_manifest_is_refused_by_name(tmp_path):
    release = write(tmp_path)
    path = tmp_path / "releases" / release.manifest.id / "manifest.json"
    whole = path.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ReleaseError, match=r"manifest\.json is not a manifest"):
            open_release(path)


@pytest.mark.parametrize("content", ["[]", "null", "3", '{"id": "x"}', '{"parts": 4}', "\x00\x01"])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(ReleaseError, match=r"manifest\.json is not a manifest"):
        open_release(path)


@pytest.mark.parametrize("parts", [None, 4, [], "text"])
def test_a_manifest_whose_parts_are_no_mapping_is_refused(tmp_path, parts):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"id": "x", "as_of": 1, "items": 1, "parts": parts}))
    with pytest.raises(ReleaseError, match=r"manifest\.json"):
        open_release(path)


def test_a_manifest_that_names_other_parts_is_refused(tmp_path):
    """Each part was whole and had its hash, but they were not the parts of this release."""
    first, second = write(tmp_path), write(tmp_path, PARTS | {"rules.json": b"[1]"})
    path = tmp_path / "releases" / first.manifest.id / "manifest.json"
    tree = json.loads(path.read_bytes())
    tree["parts"] = dict(second.manifest.parts)
    path.write_text(json.dumps(tree))
    with pytest.raises(ReleaseError, match="was altered"):
        open_release(path)


def test_a_release_without_a_manifest_does_not_exist(tmp_path):
    release = write(tmp_path)
    path = tmp_path / "releases" / release.manifest.id / "manifest.json"
    path.unlink()
    with pytest.raises(ReleaseError, match=r"no release at .*build one with"):
        open_release(path)


def test_a_part_that_the_release_never_had_is_named(tmp_path):
    with pytest.raises(ReleaseError, match=r"has no part 'towers': it has items\.parquet"):
        write(tmp_path).path("towers")
