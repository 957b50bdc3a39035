"""Requests of several clients share a pass of the model: a queue, one thread, bounded waiting."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


class OverloadedError(RuntimeError):
    """The queue is full, or the service is about to end; asking again later may help."""


@dataclass
class _Job:
    """One request in the queue: how many queries it counts for, since when, and where its answer goes."""

    payload: Any
    size: int
    arrived: float
    answer: asyncio.Future


class Batcher:
    """Runs a function over several requests at once, in a thread of its own.

    A batch is run when it has `max_batch` queries, or when its first request has waited `max_wait` seconds; what
    arrives during a run waits for the next one. A request is never split, so one of more queries than `max_batch`
    runs alone.

    Args:
        run: takes the payloads of a batch and gives an answer for each; an exception in the place of an answer is
            raised to the one who asked. If it raises, every request of the batch is run once more by itself.
        max_batch: queries.
        max_wait: seconds.
        max_waiting: queries in the queue.
        watch: is told the number of queries of every batch.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], Sequence[Any]],
        max_batch: int,
        max_wait: float,
        max_waiting: int,
        watch: Callable[[int], None] = lambda size: None,
    ):
        self._run, self.max_batch, self.max_wait, self.max_waiting = run, max_batch, max_wait, max_waiting
        self._watch = watch
        self._jobs: deque[_Job] = deque()
        self._size = 0
        self._arrived, self._full = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ccrk-model")
        self._task: asyncio.Task | None = None
        self._closing = False

    @property
    def waiting(self) -> int:
        """Queries in the queue."""
        return self._size

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._task is not None and not self._task.done() and not self._closing

    def start(self) -> None:
        """Begins to answer, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="ccrk-batches")

    async def submit(self, payload: Any, size: int = 1) -> Any:
        """Waits for the answer to one request.

        Args:
            payload: what `run` takes.
            size: queries in it.

        Raises:
            OverloadedError: if the queue is full or closed.
            Exception: as `run` says.
        """
        if not self.alive:
            raise OverloadedError("the service is ending")
        if self._jobs and self._size + size > self.max_waiting:
            raise OverloadedError(f"{self._size} queries are waiting already, and at most {self.max_waiting} may")
        loop = asyncio.get_running_loop()
        job = _Job(payload, size, loop.time(), loop.create_future())
        self._jobs.append(job)
        self._size += size
        self._arrived.set()
        if self._size >= self.max_batch:
            self._full.set()
        return await job.answer

    async def close(self) -> None:
        """Answers no more: waits for the batch that is running, and refuses what waits."""
        self._closing = True
        self._arrived.set()
        self._full.set()
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task
        for job in self._jobs:
            self._tell(job, OverloadedError("the service is ending"))
        self._jobs.clear()
        self._size = 0
        self._thread.shutdown(wait=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather()
            if self._closing:
                for job in batch:
                    self._tell(job, OverloadedError("the service is ending"))
                return
            if not batch:
                continue
            self._watch(sum(job.size for job in batch))
            answers = await loop.run_in_executor(self._thread, self._answers, [job.payload for job in batch])
            for job, answer in zip(batch, answers, strict=True):
                self._tell(job, answer)

    async def _gather(self) -> list[_Job]:
        """The requests of the next batch, without those whose client has given up."""
        while not self._jobs and not self._closing:
            self._arrived.clear()
            await self._arrived.wait()
        if self._jobs and self._size < self.max_batch and not self._closing:
            self._full.clear()
            left = self._jobs[0].arrived + self.max_wait - asyncio.get_running_loop().time()
            if left > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._full.wait()
        batch: list[_Job] = []
        size = 0
        while self._jobs and (not batch or size + self._jobs[0].size <= self.max_batch):
            job = self._jobs.popleft()
            self._size -= job.size
            if not job.answer.done():
                batch.append(job)
                size += job.size
        return batch

    def _answers(self, payloads: list[Any]) -> list[Any]:
        """In the thread: an answer, or the exception that stands for it, for each of the payloads."""
        try:
            answers = list(self._run(payloads))
            if len(answers) != len(payloads):
                raise RuntimeError(f"{len(answers)} answers for {len(payloads)} requests")
            return answers
        except Exception as error:
            if len(payloads) == 1:
                return [error]
            # one request must not spoil those of others that happened to come along with it
            logger.warning("a batch of %d requests failed (%s); each is run by itself", len(payloads), error)
            return [self._answers([payload])[0] for payload in payloads]

    @staticmethod
    def _tell(job: _Job, answer: Any) -> None:
        if job.answer.done():  # the client has given up
            return
        if isinstance(answer, BaseException):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)


__all__ = ["Batcher", "OverloadedError"]
