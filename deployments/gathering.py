"""What callers ask at the same time is done together, by one thread, in order of arrival.

A call of numpy, Arrow or a server costs nearly as much for one as for many. What fails for want of a
server is tried again until it answers or nobody waits; how long to wait is the caller's to say.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from recsys.errors import UnavailableError

PAUSE_S = 0.2  # before the next try in an outage

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Gathering(Generic[Asked, Answer]):
    def __init__(
        self,
        work: Callable[[Sequence[Asked]], Sequence[Answer]],
        *,
        size: Callable[[Asked], int],
        limit: int,
        on_outage: Callable[[], None] = lambda: None,
    ) -> None:
        """`limit`: how much is done at once, by `size`; what is larger is done alone."""
        self.outage: UnavailableError | None = None
        self._work, self._size, self._limit, self._on_outage = work, size, limit, on_outage
        # Its own: where the online store hangs and fills the common ones, this goes on.
        self._thread = ThreadPoolExecutor(1, "gathering")
        self._waiting: dict[asyncio.Future[Answer], Asked] = {}  # in order of arrival
        self._task: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """The answer of `work`; what it raises is raised for all that was done together."""
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = asked
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work_off())
        try:
            return await waiting
        finally:  # also when the client is gone
            self._waiting.pop(waiting, None)

    async def _work_off(self) -> None:
        """Works until nobody waits; the first in the queue go first, after an outage too."""
        while self._waiting:
            batch = self._next()
            given = [self._waiting[waiting] for waiting in batch]
            answers: Sequence[Answer | Exception]
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, given)
                self.outage = None
            except UnavailableError as error:
                if self.outage is None:
                    self._on_outage()
                self.outage = error
                await asyncio.sleep(PAUSE_S)
                continue
            except Exception as error:  # a wrong setting or a bug: told to these, the next may fare better
                answers = [error] * len(batch)
            for waiting, answer in zip(batch, answers, strict=True):
                self._waiting.pop(waiting, None)
                if waiting.done():  # it waited too long, or its client is gone
                    continue
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)

    def _next(self) -> list[asyncio.Future[Answer]]:
        batch, total = list[asyncio.Future[Answer]](), 0
        for waiting, asked in self._waiting.items():
            total += self._size(asked)
            if batch and total > self._limit:
                break
            batch.append(waiting)
        return batch
