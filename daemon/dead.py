"""Mounts whose processes are gone: found without ever waiting for them, and cleared."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from dataclasses import dataclass

from daemon import running
from daemon.keeping.mounting import TYPES, detach, mount_table
from dsfs.errors import MountError

_ANSWER_S = 1.0
_ALL_S = 10.0
_CONNECTIONS = "/sys/fs/fuse/connections"
NO_ANSWER = -1
DEAD = (errno.ENOTCONN, errno.ECONNABORTED, NO_ANSWER)
"""What ``errno_of_look`` gives where nobody serves, or nobody who answers."""


@dataclass(frozen=True, slots=True)
class DeadMount:
    """``dev`` is its "major:minor". ``hangs``: somebody holds it who does not answer."""

    path: str
    dev: str
    hangs: bool

    @property
    def connection(self) -> int:
        """Its id below /sys/fs/fuse/connections."""
        return int(self.dev.partition(":")[2])

    @property
    def abort(self) -> str:
        """The file that ends everything that waits in it, when a 1 is written there."""
        return f"{_CONNECTIONS}/{self.connection}/abort"


def dead_mounts() -> list[DeadMount]:
    """Mounts of dsfs that nobody serves, the outermost first. Bounded in time, however many hang."""
    served = [each.mountpoint for each in running.all_mounts() if each.alive or running.server_answers(each)]
    found = []
    deadline = time.monotonic() + _ALL_S
    for mounted in mount_table():
        path = mounted.path
        if mounted.type not in TYPES or any(path == place or path.startswith(f"{place}/") for place in served):
            continue
        if time.monotonic() > deadline:
            break  # who was not looked at may well be alive; once these are cleared, the next look comes to it
        code = errno_of_look(path, min(_ANSWER_S, deadline - time.monotonic()))
        if code in DEAD:
            found.append(DeadMount(path, mounted.dev, code == NO_ANSWER))
    return found


def errno_of_look(path: str, within_s: float) -> int:
    """What looking at a file system gives: 0, an errno, or NO_ANSWER.

    By a child, as whoever waits for a FUSE server may not be killable; one that hangs is left to itself.
    """
    child = os.fork()
    if child == 0:
        try:
            null = os.open(os.devnull, os.O_RDWR)  # nobody shall wait for the output of one that hangs
            for fd in range(3):
                os.dup2(null, fd)
            os.statvfs(path)
            code = 0
        except OSError as error:
            code = error.errno or errno.EIO
        os._exit(min(code, 255))
    pidfd = os.pidfd_open(child)
    try:
        if not select.select([pidfd], [], [], max(0.0, within_s))[0]:
            os.kill(child, signal.SIGKILL)
            return NO_ANSWER
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(pidfd)


def clear() -> list[str]:
    """Detach all dead mounts, and forget what they left; a line each. Raises MountError."""
    done = []
    for dead in reversed(dead_mounts()):
        if dead.hangs:
            _abort(dead)
        detach(dead.path)
        if any(mounted.path == dead.path and mounted.dev == dead.dev for mounted in mount_table()):
            done.append(f"{dead.path}: cannot be detached (run this as the user who mounted it, or as root)")
        else:
            done.append(f"{dead.path}: detached" + (f", connection {dead.connection} aborted" if dead.hangs else ""))
    still = {mounted.path for mounted in mount_table() if mounted.type in TYPES}
    for left in running.all_mounts():
        if not left.alive and not running.server_answers(left) and left.mountpoint not in still:
            running.forget(left.runtime_dir)
    return done


def _abort(dead: DeadMount) -> None:
    try:
        with open(dead.abort, "w", encoding="ascii") as file:
            file.write("1")
    except OSError as error:
        hint = f"mount -t fusectl fusectl {_CONNECTIONS}" if error.errno == errno.ENOENT else "run this as root"
        raise MountError(f"{dead.path}: {dead.abort}: {error.strerror} ({hint}, and try again)") from error
