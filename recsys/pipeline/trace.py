"""What one batch went through: seconds per step, and the candidates with every reason.

The library only returns a trace; deployments turn traces into metrics, logs and "why" answers.
"""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from recsys.types import Candidates, RequestBatch, Slate


@dataclass(slots=True)
class Trace:
    seconds: dict[str, float] = field(default_factory=dict)  # step -> wall clock

    async def step(self, name: str, call: Callable[..., Any], *args: Any) -> Any:
        """The result of `call(*args)`, awaited where it can be; its time is noted under `name`."""
        start = time.perf_counter()
        try:
            result = call(*args)
            return await result if inspect.isawaitable(result) else result
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Answer:
    """The slates of a batch, and all that led to them."""

    slates: tuple[Slate, ...]  # [B]
    batch: RequestBatch
    candidates: Candidates
    trace: Trace
