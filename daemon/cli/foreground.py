"""``dsfs mount --foreground``: stays for as long as its mount is there."""

from __future__ import annotations

import os
import signal
import time

from daemon import running
from daemon.cli.output import say

_NEXT_KEEPER_S = 10.0


def stay(mountpoint: str, runtime_dir: str, keeper: int) -> int:
    """Say that it is mounted, and wait for the keeper, and for the next one when it is killed; orphans of the mount are
    reaped here."""
    asked = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        found = running.look(runtime_dir)
        if found is not None and found.alive:
            os.kill(found.keeper_pid, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, *hang_up()):
        signal.signal(number, stop)
    say(f"dsfs: mounted at {mountpoint}")  # now that whoever reads it may stop us
    while True:
        status = _reap_until(keeper)
        if asked or status >= 0:
            return status
        deadline = time.monotonic() + _NEXT_KEEPER_S
        while (found := running.look(runtime_dir)) is None or not found.alive or found.keeper_pid == keeper:
            if time.monotonic() > deadline:
                say(f"dsfs: the keeper (pid {keeper}) was killed, and no server was there to start another")
                return 1
            time.sleep(0.02)  # nothing tells when somebody takes the lock of a keeper
        keeper = found.keeper_pid


def hang_up() -> tuple[signal.Signals, ...]:
    """What a terminal that is closed sends; nothing where that is ignored, as by nohup(1)."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)


def _reap_until(pid: int) -> int:
    """The exit status of one of our children, or of what we are the reaper of; negative when a signal ended it."""
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return 0
        if ended == pid:
            return os.waitstatus_to_exitcode(status)
