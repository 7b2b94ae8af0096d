"""Starts stand-bys of what is installed now, one at a time, and hears why one cannot start."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from daemon.keeping.loop import say, write
from daemon.process import end_in_order


class Starter:
    """``argv`` is what a stand-by is started with; None: others start them. ``failed`` is told why one did not start.

    ``ends``: in what order the kernel ends it for want of memory (daemon/process.py).
    ``failures``: starts that have failed one after the other.
    """

    def __init__(self, argv: list[str] | None, failed: Callable[[str, bool], None], ends: int) -> None:
        self._argv = argv
        self._ends = ends
        self._failed = failed
        self._children: list[subprocess.Popen[bytes]] = []
        self._starting: subprocess.Popen[bytes] | None = None
        self._said = -1  # what the one that is starting writes to its stderr
        self.failures = 0

    @property
    def ours(self) -> bool:
        """Whether stand-bys are started here."""
        return self._argv is not None

    @property
    def busy(self) -> bool:
        """Whether one is starting."""
        return self._starting is not None

    def start(self) -> None:
        assert self._argv is not None
        # What it says before it can run code of ours is the reason why it cannot: it goes where we can read it, and the
        # stand-by writes into our log from there on.
        self._close_said()
        self._said = os.memfd_create("stderr", os.MFD_CLOEXEC)
        log = os.dup(2)
        try:
            argv = [*self._argv, f"--log={log}"]
            self._starting = subprocess.Popen(argv, stderr=self._said, pass_fds=[log])
            end_in_order(self._starting.pid, self._ends)
        except OSError as error:  # no memory, or an installation that is just being replaced
            self._has_failed(f"no server can be started: {error}", unexpected=False)
            return
        finally:
            os.close(log)
        self._children.append(self._starting)

    def kill(self) -> None:
        """End the one that is starting, if one is."""
        if self._starting is not None:
            self._starting.kill()
            self._starting = None

    def has_started(self, pid: int) -> bool:
        """A stand-by is there; whether it is the one that was starting."""
        if self._starting is None or self._starting.pid != pid:
            return False
        self._starting = None
        self._close_said()
        self.failures = 0
        return True

    def look_after_children(self) -> None:
        """After a SIGCHLD."""
        for child in list(self._children):
            if child.poll() is None:
                continue
            self._children.remove(child)
            if child is self._starting:
                self._starting = None
                said = self._close_said()
                what = f"the server ended with status {child.returncode} before it was ready"
                self._has_failed(f"{what}: {said}" if said else what, unexpected=True)

    def stop(self) -> None:
        """Wait until all have ended, and end those that do not."""
        for child in self._children:
            try:
                child.wait(1)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _has_failed(self, problem: str, *, unexpected: bool) -> None:
        self.failures += 1
        say(problem)
        self._failed(problem, unexpected)

    def _close_said(self) -> str:
        """The last line of what a stand-by said while it started; all of it goes to the log."""
        if self._said < 0:
            return ""
        os.lseek(self._said, 0, os.SEEK_SET)
        with open(self._said, encoding="utf-8", errors="replace") as file:
            text = file.read().strip()
        self._said = -1
        if text:
            write(text)
        return text.rpartition("\n")[2]
