"""Fitted retrieval models on disk: one file, named by the hash of what it holds.

    <folder>/<model>-<first 16 digits of the sha256>.npz    the arrays, and what they are of

The same fit gives the same file. A file that was altered or cut is refused when it is loaded.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import ReleaseError
from recsys.models.blend import class_name, fitted_class
from recsys.models.retrieval import Fitted

ABOUT = "about"  # the entry that says which class the arrays are of
_DIGITS = 16


def save_fitted(folder: Path, fitted: Fitted, *, model: str, settings: str) -> Path:
    """The file of `fitted`, written whole or not at all. `settings` say how it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model": model, "settings": settings, "class": class_name(fitted)}
    packed = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    draft = folder / f".{model}.{os.getpid()}"
    try:
        with draft.open("wb") as file:
            arrays = dict(sorted(fitted.arrays().items()))
            np.savez(file, allow_pickle=False, **{ABOUT: packed}, **arrays)
        path = folder / f"{model}-{_digest(draft)}.npz"
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def load_fitted(path: Path) -> Fitted:
    """What was saved there. Raises ReleaseError when it is missing, altered or of another kind."""
    if not path.is_file():
        raise ReleaseError(f"no model at {path}: train one with jobs.train_retrieval --model")
    if not path.stem.endswith(_digest(path)):
        raise ReleaseError(f"{path} is not what its name says (cut or altered): train it again")
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    about: dict[str, Any] = json.loads(arrays.pop(ABOUT).tobytes())
    fitted: Fitted = fitted_class(about["class"]).from_arrays(arrays)
    return fitted


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
