"""What a driver of Ray Train or Tune needs before it starts; this file imports ray.

Apart from `runner`, so that a worker of a trial doesn't pay for importing Ray Train, torch and xgboost.
"""

import hashlib
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray.cloudpickle


def fingerprint(data: Mapping[str, Any]) -> str:
    """Of all that a run is given: what was begun with other data or settings is not gone on with."""
    buffers: list[pickle.PickleBuffer] = []
    digest = hashlib.sha256(ray.cloudpickle.dumps(dict(data), protocol=5, buffer_callback=buffers.append))
    for buffer in buffers:
        digest.update(buffer.raw())
    return digest.hexdigest()[:12]


@contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """For what Ray takes from the driver's environment only; what is set there already stays."""
    added = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
