"""The cache directory of a mount that names none: the default one, or one of its own while another mount uses that."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from daemon import running
from daemon.cli.output import say
from daemon.settings import Settings
from dsfs.client import runtime_directories, runtime_root


@contextmanager
def choosing() -> Iterator[None]:
    """Nobody else chooses meanwhile; within it, what was chosen is to be saved, which is where others see it."""
    fd = os.open(f"{runtime_root()}/choosing", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def cache_dir_of(mountpoint: str, default: str) -> str:
    """Where a mount has its cache, and says so if that is not the default directory.

    One that has got a directory of its own keeps it, also when it could have the default one: what it has cached lies
    there.
    """
    own = f"{default}-{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:8]}"
    if os.path.isdir(own):
        say(f"dsfs: the cache of {mountpoint} is in {own}, as before (--cache-dir names another)")
        return own
    user = _user_of(default)
    if user is None:
        return default
    say(f"dsfs: the cache of {mountpoint} is in {own}, as {user} uses {default} (--cache-dir names another)")
    return own


def _user_of(directory: str) -> str | None:
    """The mount point of a mount that runs, or is just starting, with this cache directory."""
    for runtime_dir in runtime_directories():
        settings = Settings.of(runtime_dir)
        if settings is None or os.path.realpath(settings.cache_dir) != os.path.realpath(directory):
            continue
        found = running.look(runtime_dir)  # None for one that is not so far yet
        lives = found is not None and (found.alive or running.server_answers(found))
        if lives or running.is_starting(runtime_dir):
            return settings.mountpoint
    return None
