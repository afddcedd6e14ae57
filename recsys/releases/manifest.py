"""The release on disk: parts addressed by the hash of their content, and a manifest written last.

    <artifacts>/parts/<sha256>                 bytes of one part, shared by all releases that hold it
    <artifacts>/releases/<id>/manifest.json    names -> hashes; a release without it does not exist

The id is the hash of the parts, so building the same release twice gives the same release. Opening
verifies every hash and refuses a mismatch: what was altered or half copied is never served.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recsys.errors import ReleaseError


@dataclass(frozen=True, slots=True)
class Manifest:
    id: str
    parts: Mapping[str, str]  # name -> sha256
    as_of: int  # epoch seconds: no part has seen anything from then on
    items: int
    metric: str = "inner_product"  # of the towers and of the index, which must be the same
    watermark: Mapping[str, Any] = field(default_factory=dict)  # version of the event table, ...
    feature_views: Mapping[str, str] = field(default_factory=dict)  # name -> hash of its columns
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # offline metrics with intervals
    index_curve: Sequence[Mapping[str, Any]] = ()  # recall and time of each setting of the index


@dataclass(frozen=True, slots=True)
class Release:
    """An opened release: its hashes were verified."""

    manifest: Manifest
    folder: Path  # of the artifacts

    @property
    def uri(self) -> str:
        return str(_manifest_path(self.folder, self.manifest.id))

    def path(self, name: str) -> Path:
        """The file of a part. Raises ReleaseError for a part that the release lacks."""
        if name not in self.manifest.parts:
            raise ReleaseError(
                f"release {self.manifest.id} has no part {name!r}: it has {', '.join(self.manifest.parts)}"
            )
        return self.folder / "parts" / self.manifest.parts[name]


def write_release(artifacts: Path, parts: Mapping[str, bytes | Path], **facts: Any) -> Release:
    """Store `parts` (bytes, or a file that is copied), then the manifest with `facts` (the other fields of
    `Manifest`)."""
    hashes = {name: _store(artifacts, content) for name, content in sorted(parts.items())}
    return _write_manifest(artifacts, hashes, facts)


def with_parts(
    release: Release, parts: Mapping[str, bytes | Path], *, instead_of: str, **facts: Any
) -> Release:
    """A release like `release`, with `parts` in place of those whose names start with `instead_of`; all
    others are shared, not copied. `facts` change fields of its manifest."""
    kept = {n: h for n, h in release.manifest.parts.items() if not n.startswith(instead_of)}
    new = {name: _store(release.folder, content) for name, content in sorted(parts.items())}
    old = {
        f.name: getattr(release.manifest, f.name) for f in fields(Manifest) if f.name not in ("id", "parts")
    }
    return _write_manifest(release.folder, dict(sorted((kept | new).items())), old | facts)


def _write_manifest(artifacts: Path, hashes: Mapping[str, str], facts: Mapping[str, Any]) -> Release:
    identity = _identity(hashes)
    manifest = Manifest(id=identity, parts=hashes, **facts)
    path = _manifest_path(artifacts, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(asdict(manifest), indent=2).encode()
    _write(path, lambda draft: draft.write_bytes(content))
    return Release(manifest, artifacts)


def open_release(uri: str | Path, *, only: tuple[str, ...] = ("",)) -> Release:
    """The release of a manifest, every part verified whose name starts as one of `only`. Raises
    ReleaseError."""
    path = Path(uri)
    try:
        manifest = Manifest(**json.loads(path.read_bytes()))
        if manifest.id != (expected := _identity(manifest.parts)):
            raise ReleaseError(
                f"{path} was altered: its parts are those of {expected}, not of {manifest.id}: "
                "build the release anew"
            )
    except FileNotFoundError as error:
        raise ReleaseError(f"no release at {path}: build one with `python -m jobs.build_release`") from error
    except (ValueError, TypeError) as error:
        raise ReleaseError(f"{path} is not a manifest ({error}): build the release anew") from error
    release = Release(manifest, path.parent.parent.parent)
    for name, expected in manifest.parts.items():
        if not name.startswith(only):
            continue
        try:
            found = _file_sha256(release.path(name))
        except FileNotFoundError as error:
            raise ReleaseError(f"release {manifest.id} lacks part {name!r}: build it anew") from error
        if found != expected:
            raise ReleaseError(
                f"part {name!r} of release {manifest.id} was altered "
                f"({found[:12]} instead of {expected[:12]}): build it anew"
            )
    return release


def _identity(hashes: Mapping[str, str]) -> str:
    return _sha256(json.dumps(dict(hashes), sort_keys=True).encode())[:12]


def _manifest_path(artifacts: Path, identity: str) -> Path:
    return artifacts / "releases" / identity / "manifest.json"


def _store(artifacts: Path, content: bytes | Path) -> str:
    digest = _sha256(content) if isinstance(content, bytes) else _file_sha256(content)
    path = artifacts / "parts" / digest
    # A part that was altered on disk is written anew: that is what "build it anew" promises.
    if not path.exists() or _file_sha256(path) != digest:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            _write(path, lambda draft: draft.write_bytes(content))
        else:
            _write(path, lambda draft: shutil.copyfile(content, draft))
    return digest


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Atomically: a reader sees the whole file or none."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
