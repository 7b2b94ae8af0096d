"""Who uses a cache directory, and those that mounts have of their own beside the default one."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import time
from collections.abc import Iterator

from daemon import running
from daemon.dead import NO_ANSWER, errno_of_look
from daemon.locks import is_held
from daemon.settings import Settings
from dsfs.client import runtime_directories

_LOOK_S = 2.0


def own_of(mountpoint: str, default: str) -> str:
    """A mount's own directory: on the disk of the default one, which may be a link to elsewhere."""
    return f"{os.path.realpath(default)}-{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:8]}"


def unused_own(default: str) -> list[str]:
    """Own directories beside the default one that no mount of this user has now."""
    beside = f"{os.path.realpath(default)}-"
    return [
        path
        for path in sorted(glob.glob(f"{glob.escape(beside)}*"))
        if re.fullmatch("[0-9a-f]{8}", path.removeprefix(beside))
        and os.path.isdir(f"{path}/objects")
        and not is_locked(path)
        and user_of(path) is None
    ]


def is_locked(directory: str) -> bool:
    """Whether a server has it: also another user's, or another machine's that shares the disk. True if that cannot be
    told."""
    try:
        fd = os.open(f"{directory}/lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return is_held(fd)
    except OSError:
        return True
    finally:
        os.close(fd)


def user_of(directory: str) -> str | None:
    """The mount point of a mount of this user that runs, or is just starting, with this cache directory."""
    users = list(_in_use())
    real = os.path.realpath(directory)
    for settings in users:
        if settings.cache_dir in (directory, real):
            return settings.mountpoint
    until_s = time.monotonic() + _LOOK_S
    for settings in users:
        # One on a disk that hangs is another's, as this one has just been looked at.
        answers = errno_of_look(settings.cache_dir, max(0.0, until_s - time.monotonic())) != NO_ANSWER
        if answers and os.path.realpath(settings.cache_dir) == real:
            return settings.mountpoint
    return None


def _in_use() -> Iterator[Settings]:
    for runtime_dir in runtime_directories():
        settings = Settings.of(runtime_dir)
        # In this order: one that becomes ready meanwhile is alive by then.
        if settings is not None and (running.is_starting(runtime_dir) or _lives(runtime_dir)):
            yield settings


def _lives(runtime_dir: str) -> bool:
    found = running.look(runtime_dir)
    return found is not None and (found.alive or running.server_answers(found))
