from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsfs.fuse.polling import Polling
from dsfs.fuse.waiters import MOST, Waiters


@given(st.lists(st.booleans(), max_size=200))
def test_a_fast_disk_is_asked_again_and_a_slow_one_hardly_ever(earlier: list[bool]) -> None:
    polling = Polling()
    for came in earlier:
        polling.came() if came else polling.did_not_come()
    for _ in range(20):
        polling.did_not_come()
    asked = 0
    for _ in range(640):
        if polling.pays():
            asked += 1
            polling.did_not_come()
    assert 5 <= asked <= 10, "a disk may have been replaced, or be less busy"
    for _ in range(20):
        polling.came()
    assert all(polling.pays() for _ in range(100))


def test_one_that_waits_for_ever_holds_up_no_other() -> None:
    waiters, never, done = Waiters(10), threading.Event(), threading.Semaphore(0)
    for _ in range(MOST - 1):
        waiters.put(lambda _buffer: never.wait() and None)
    sizes: list[int] = []

    def job(buffer: memoryview) -> None:
        sizes.append(len(buffer))
        done.release()

    for _ in range(50):
        waiters.put(job)
    for _ in range(50):
        assert done.acquire(timeout=10)
    assert sizes == [10] * 50
    never.set()


def test_a_process_that_gets_no_more_threads_waits_with_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    waiters, done = Waiters(10), threading.Semaphore(0)
    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(50):
        waiters.put(lambda _buffer: done.release())
    for _ in range(50):
        assert done.acquire(timeout=10)
