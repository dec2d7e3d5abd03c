"""Batches of training chips, drawn ahead of the training in a thread, so that reading hides behind computing."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from geopeft.data.acquisition import Whereabouts
from geopeft.watched import BEGIN_S, LOOK_S

DEPTH = 2

Made = TypeVar("Made")


@dataclass(frozen=True)
class Batch:
    """Some chips that teach.

    Args:
        values: (B, C, s, s) float32 in raster units, 0 where not valid.
        valid: (B, s, s) bool.
        class_ids: (B, s, s) uint8, 255 where nothing is to be learned.
        taken: when and where the chips were taken; None where nobody tells.
        marks: for each chip (raster index, row, column, turn): its upper left pixel in the raster, and how it was
            turned (`geopeft.data.chips.turn`). Chips of the same mark hold the same values. Empty: not told.
    """

    values: np.ndarray
    valid: np.ndarray
    class_ids: np.ndarray
    taken: Whereabouts | None = None
    marks: tuple[tuple[int, int, int, int], ...] = ()

    def part(self, number: int, of: int) -> Batch:
        """Every `of`-th chip, from chip `number` on: one of so many parts that together are the batch."""
        mine = slice(number, None, of)
        taken = Whereabouts(self.taken.time[mine], self.taken.place[mine]) if self.taken is not None else None
        return Batch(self.values[mine], self.valid[mine], self.class_ids[mine], taken, self.marks[mine])


class Sampler(Protocol):
    """What draws batches at random."""

    @property
    def random_state(self) -> dict[str, Any]:
        """Where the drawing is, as JSON can hold it; setting it goes on from there."""

    @random_state.setter
    def random_state(self, state: dict[str, Any]) -> None: ...

    def draw(self, count: int) -> Batch:
        """The next batch."""


class Ahead(Generic[Made]):
    """A sampler's batches in their order, drawn and made ready in a thread, two ahead of their use.

    Nobody else may use the sampler, nor what it reads from, between the first batch and the end of the `with` block;
    then the sampler stands where it would if each batch had been drawn when it was taken.

    Args:
        sampler: draws.
        count: chips of a batch.
        make: what is done to a batch, in the thread too.
    """

    def __init__(self, sampler: Sampler, count: int, make: Callable[[Batch], Made]) -> None:
        self._sampler, self._count, self._make = sampler, count, make
        self._state = sampler.random_state
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._made: SimpleQueue[tuple[Made, dict[str, Any]] | BaseException] = SimpleQueue()
        self._begun, self._ended = _thread.allocate_lock(), _thread.allocate_lock()
        self._ended.acquire()
        self._coming = 0
        # Until the thread has begun; where its first allocation fails, it never does.
        self._silent, self._closing = True, False

    @property
    def random_state(self) -> dict[str, Any]:
        """The sampler's state behind the last batch that was taken."""
        return self._state

    def take(self) -> Made:
        """The next batch. An error of the sampler or of `make` is raised when its batch is asked for.

        Raises:
            MemoryError, RuntimeError: there is no memory for a thread.
        """
        if not self._begun.locked():
            _thread.start_new_thread(self._run, ())
            self._begun.acquire()
        while self._coming <= DEPTH:
            self._wanted.put(True)
            self._coming += 1
        found = self._next()
        self._coming -= 1
        if isinstance(found, BaseException):
            raise found
        made, self._state = found
        return made

    def __enter__(self) -> Ahead[Made]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._begun.locked():
            self._closing = True
            self._wanted.put(False)
            # What is being drawn is waited for: others will read from the same files.
            self._ended.acquire(blocking=not self._silent)
            self._sampler.random_state = self._state

    def _next(self) -> tuple[Made, dict[str, Any]] | BaseException:
        latest = time.monotonic() + BEGIN_S
        while True:
            try:
                return self._made.get(timeout=LOOK_S)
            except Empty:
                if not self._ended.locked() or (self._silent and time.monotonic() > latest):
                    raise MemoryError("can't start new thread") from None

    def _run(self) -> None:
        self._silent = False
        try:
            while self._wanted.get() and not self._closing:
                self._made.put(self._draw())
        finally:
            self._ended.release()

    def _draw(self) -> tuple[Made, dict[str, Any]] | BaseException:
        try:
            return self._make(self._sampler.draw(self._count)), self._sampler.random_state
        except BaseException as error:
            return error
