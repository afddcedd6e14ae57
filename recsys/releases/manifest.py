"""The release on disk: parts addressed by the hash of their content, and a manifest written last.

    <artifacts>/parts/<sha256>                 bytes of one part, shared by all releases that hold it
    <artifacts>/releases/<id>/manifest.json    names -> hashes; a release without it does not exist

The id is the hash of the parts, so building the same release twice gives the same release. Opening
verifies every hash and refuses a mismatch: what was altered or half copied is never served.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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


def write_release(artifacts: Path, parts: Mapping[str, bytes], **facts: Any) -> Release:
    """Store `parts`, then the manifest with `facts` (the other fields of `Manifest`)."""
    hashes = {name: _store(artifacts, content) for name, content in sorted(parts.items())}
    identity = _identity(hashes)
    manifest = Manifest(id=identity, parts=hashes, **facts)
    path = _manifest_path(artifacts, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(asdict(manifest), indent=2).encode())
    return Release(manifest, artifacts)


def open_release(uri: str | Path) -> Release:
    """The release of a manifest, every part verified. Raises ReleaseError."""
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
        try:
            found = _sha256(release.path(name).read_bytes())
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


def _store(artifacts: Path, content: bytes) -> str:
    digest = _sha256(content)
    path = artifacts / "parts" / digest
    # A part that was altered on disk is written anew: that is what "build it anew" promises.
    if not path.exists() or _sha256(path.read_bytes()) != digest:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content)
    return digest


def _write(path: Path, content: bytes) -> None:
    """Atomically: a reader sees the whole file or none."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    os.replace(draft, path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
