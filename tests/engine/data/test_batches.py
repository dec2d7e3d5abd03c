"""Batches drawn ahead: the same as without, whatever happens between."""

from __future__ import annotations

import _thread
import threading
import time
from typing import Any

import numpy as np
import pytest
from geopeft.data.batches import DEPTH, Ahead, Batch
from geopeft.errors import RasterError


class Sampler:
    """Draws random numbers; fails at draw number `fails`."""

    def __init__(self, fails: int = -1) -> None:
        self._rng = np.random.default_rng(0)
        self.drawn, self.fails, self.threads = 0, fails, set[int]()

    @property
    def random_state(self) -> dict[str, Any]:
        return dict(self._rng.bit_generator.state)

    @random_state.setter
    def random_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def draw(self, count: int) -> Batch:
        self.threads.add(threading.get_ident())
        self.drawn += 1
        if self.drawn - 1 == self.fails:
            raise RasterError("The raster is gone.")
        values = self._rng.normal(size=(count, 1, 2, 2)).astype(np.float32)
        return Batch(values, np.ones((count, 2, 2), bool), np.zeros((count, 2, 2), np.uint8))


def number(batch: Batch) -> float:
    return float(batch.values[0, 0, 0, 0])


def wait_for(sampler: Sampler, drawn: int) -> None:
    end = time.monotonic() + 20
    while sampler.drawn < drawn and time.monotonic() < end:
        time.sleep(0.01)


def test_batches_come_in_the_order_of_the_sampler_and_are_drawn_ahead_in_a_thread() -> None:
    plain, sampler = Sampler(), Sampler()
    with Ahead(sampler, 2, number) as batches:
        found = [batches.take() for _ in range(5)]
        wait_for(sampler, 5 + DEPTH)
        assert sampler.drawn == 5 + DEPTH
    assert found == [number(plain.draw(2)) for _ in range(5)]
    assert threading.get_ident() not in sampler.threads


def test_the_state_is_that_of_the_batches_that_were_taken() -> None:
    plain, sampler = Sampler(), Sampler()
    with Ahead(sampler, 2, number) as batches:
        assert batches.random_state == plain.random_state
        for _ in range(3):
            batches.take()
            plain.draw(2)
            assert batches.random_state == plain.random_state
    assert sampler.random_state == plain.random_state
    assert number(sampler.draw(1)) == number(plain.draw(1))


def test_an_error_comes_with_its_batch_and_not_before() -> None:
    sampler = Sampler(fails=1)
    with Ahead(sampler, 2, number) as batches:
        batches.take()
        wait_for(sampler, 2)
        with pytest.raises(RasterError, match="gone"):
            batches.take()
    sampler = Sampler(fails=1)
    with Ahead(sampler, 2, number) as batches:
        batches.take()


def test_nothing_is_drawn_before_the_first_batch_nor_behind_the_end() -> None:
    sampler = Sampler()
    with Ahead(sampler, 2, number):
        pass
    assert sampler.drawn == 0
    with pytest.raises(KeyError), Ahead(sampler, 2, number) as batches:
        batches.take()
        raise KeyError
    drawn = sampler.drawn
    time.sleep(0.05)
    assert sampler.drawn == drawn


def test_a_thread_that_never_begins_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geopeft.data.batches.BEGIN_S", 0.2)
    monkeypatch.setattr(_thread, "start_new_thread", lambda *given: 0)
    with pytest.raises(MemoryError), Ahead(Sampler(), 2, number) as batches:
        batches.take()
