"""``dsfs mount --foreground``: stays for as long as its mount is there. What ends that, and any start."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from types import FrameType

from daemon import running
from daemon.cli.output import say

_NEXT_KEEPER_S = 10.0


class Ending:
    """Notes the signals that end a start, and then a mount in the foreground, from before there is a keeper: as an
    exception, one could come where nobody knows yet whom to end."""

    def __init__(self, *, foreground: bool) -> None:
        self.noted = False
        self._heard, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)  # one that comes just before a select ends that too
        numbers = [signal.SIGTERM]  # as by timeout(1)
        if foreground:
            numbers += [signal.SIGINT, *from_terminal()]
        elif signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in the background of a script
            numbers.append(signal.SIGINT)
        self._before = {number: signal.signal(number, self._note) for number in numbers}

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.noted = True

    def wait_for(self, fd: int) -> bool:
        """Wait until it can be read; False when a signal came."""
        while not self.noted and fd not in select.select([fd, self._heard], [], [])[0]:
            pass  # the handler is called before the next look
        return not self.noted

    def then(self, stop: Callable[[], None]) -> None:
        """Call this from now on, and if one has come already."""
        for number in self._before:
            signal.signal(number, lambda _number, _frame: stop())
        if self.noted:
            stop()

    def over(self) -> None:
        """They do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def stay(mountpoint: str, runtime_dir: str, keeper: int, ending: Ending) -> int:
    """Say that it is mounted, and wait for the keeper, and for the next one when it is killed; orphans of the mount are
    reaped here. What it leaves is removed."""
    asked = False
    ours = {keeper}

    def stop() -> None:
        nonlocal asked
        asked = True
        found = running.look(runtime_dir)
        if found is not None and found.alive:
            ours.add(found.keeper_pid)
            os.kill(found.keeper_pid, signal.SIGTERM)

    ending.then(stop)
    say(f"dsfs: mounted at {mountpoint}")  # now that whoever reads it may stop us
    while True:
        status = _reap_until(keeper)
        if asked or status >= 0:
            break
        deadline = time.monotonic() + _NEXT_KEEPER_S
        while (found := running.look(runtime_dir)) is None or not found.alive or found.keeper_pid == keeper:
            if time.monotonic() > deadline:
                say(f"dsfs: the keeper (pid {keeper}) was killed, and no server started another (mount again)")
                status = 1
                break
            time.sleep(0.02)  # nothing tells when somebody takes the lock of a keeper
        else:
            keeper = found.keeper_pid
            ours.add(keeper)
            continue
        break
    forget_own(runtime_dir, ours)
    return status


def forget_own(runtime_dir: str, keepers: set[int]) -> None:
    """Remove what a mount of these keepers left. A command that was stopped (^Z) may go on when the next is there."""
    if running.is_starting(runtime_dir):
        return
    found = running.look(runtime_dir)
    if found is None or (not found.alive and found.keeper_pid in keepers):
        running.forget(runtime_dir)


def from_terminal() -> tuple[signal.Signals, ...]:
    """What a terminal sends when it is closed, and at Ctrl-\\; nothing that is ignored, as by nohup(1)."""
    numbers = (signal.SIGHUP, signal.SIGQUIT)
    return tuple(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN)


def _reap_until(pid: int) -> int:
    """The exit status of one of our children, or of what we are the reaper of; negative when a signal ended it."""
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return 0
        if ended == pid:
            return os.waitstatus_to_exitcode(status)
