"""What ends a mount that stays in the foreground."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import running
from daemon.cli.foreground import Ending, forget_own, from_terminal


@pytest.fixture
def ending(as_in_a_terminal: None) -> Iterator[Ending]:
    wakes = signal.set_wakeup_fd(-1)
    made = Ending(foreground=True)
    yield made
    made.over()
    signal.set_wakeup_fd(wakes)


@pytest.mark.usefixtures("as_in_a_terminal")
def test_a_terminal_that_is_closed_ends_it_unless_that_is_ignored() -> None:
    """As by nohup(1)."""
    assert from_terminal() == (signal.SIGHUP, signal.SIGQUIT)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert from_terminal() == (signal.SIGQUIT,)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_comes_between_two_steps_ends_it_at_the_next(ending: Ending, number: signal.Signals) -> None:
    """While nobody waits: before the keeper is there, and before it is known that it serves."""
    stopped = []
    silent, _write = os.pipe()
    os.kill(os.getpid(), number)
    assert not ending.wait_for(silent)
    ending.then(lambda: stopped.append("once"))
    assert stopped == ["once"]
    os.kill(os.getpid(), number)
    assert stopped == ["once", "once"]


def test_what_another_mount_has_there_now_is_not_removed(tmp_path: Path) -> None:
    """A command that was stopped (^Z), whose mount was unmounted from elsewhere, goes on when there is the next."""
    runtime_dir = tmp_path / "mount"

    def mount(keeper: int) -> None:
        runtime_dir.mkdir(exist_ok=True)
        (runtime_dir / "keeper.json").write_text('{"mountpoint": "/a"}')
        (runtime_dir / "lock").write_text(f"{keeper}\n")

    def is_kept() -> bool:
        forget_own(str(runtime_dir), {10, 11})
        return runtime_dir.exists()

    mount(20)
    with open(runtime_dir / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_kept()
    assert is_kept(), "its server starts another keeper"
    (runtime_dir / "keeper.json").unlink()
    with open(tmp_path / "mount.starting", "w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        assert running.is_starting(str(runtime_dir))
        assert is_kept()
    mount(11)
    assert not is_kept()
