"""The border to other replicas: one retry, one deadline, and Ray's errors become ours.

A call that met a lost replica is sent once more; Serve's router knows by then not to choose that one.
Every step is pure or only reads, so asking twice changes nothing. An error that our own code raised
over there arrives as itself; any other is a programmer's error and passes through.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from recsys.errors import RecsysError, UnavailableError
from recsys.pipeline.scopes import Scope

LOST = (RayActorError, BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError)


async def call(handle: DeploymentHandle, *arguments: Any, timeout_s: float) -> Any:
    """The answer of one replica. Raises UnavailableError after two lost replicas or `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            try:
                return await handle.remote(*arguments)
            except LOST:
                return await handle.remote(*arguments)
    except LOST as error:
        raise UnavailableError(
            f"{handle.deployment_name} lost two replicas in one call ({type(error).__name__}); "
            "Serve is restarting them: ask again"
        ) from error
    except TimeoutError as error:
        raise UnavailableError(
            f"{handle.deployment_name} did not answer within {timeout_s:g} s; give it more replicas"
        ) from error
    except RayTaskError as error:
        if isinstance(error.cause, RecsysError):
            raise error.cause from None
        raise


@dataclass(frozen=True, slots=True)
class RemoteStep:
    """A step of the request path that runs elsewhere; its signature is that of the step."""

    handle: DeploymentHandle
    timeout_s: float

    async def __call__(self, *arguments: Any) -> Any:
        return await call(self.handle, *arguments, timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class RemoteShard:
    """A shard of the index that runs elsewhere. The source that asks has its own, shorter deadline."""

    name: str
    handle: DeploymentHandle
    timeout_s: float = 10.0

    async def __call__(
        self, queries: np.ndarray, k: int, scopes: Sequence[Scope] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        return await call(self.handle, queries, k, scopes, timeout_s=self.timeout_s)
