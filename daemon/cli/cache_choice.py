"""The cache directory of a mount that names none: the default one, or one of its own while another mount uses that."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from daemon import running
from daemon.cache_users import own_of, user_of
from daemon.cli.output import say
from daemon.locks import take_within
from daemon.settings import Settings, default_cache_dir
from dsfs.client import runtime_root
from dsfs.errors import ConfigError, MountError

_OTHERS_S = 10.0


def save_with_cache(settings: Settings, named: str | None) -> Settings:
    """Save what a mount is to be, with the cache directory that it is to have; ``named``: by --cache-dir.

    Raises MountError; then nothing is left of it.
    """
    try:
        with choosing(named):
            if named is None:
                settings = replace(settings, cache_dir=cache_dir_of(settings.mountpoint, settings.cache_dir))
            settings.save()
    except MountError:
        running.forget(settings.runtime_dir)
        raise
    return settings


@contextmanager
def choosing(named: str | None = None) -> Iterator[None]:
    """Nobody else chooses meanwhile; within it, what was chosen is to be saved, which is where others see it.

    Whoever names a directory other than the default one waits for nobody. Raises MountError.
    """
    if named is not None and not _is_default(named):
        yield
        return
    fd = os.open(f"{runtime_root()}/choosing", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not take_within(fd, _OTHERS_S):
            raise MountError(
                "another dsfs mount is looking for a cache directory and does not end (name one with --cache-dir)"
            )
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that looked at a disk that hangs may have it open still
    finally:
        os.close(fd)


def cache_dir_of(mountpoint: str, default: str) -> str:
    """Where a mount has its cache, and says so if that is not the default directory.

    One that has cached something in a directory of its own keeps that, also when it could have the default one. Raises
    MountError where it can have neither: beside a mount point is another disk.
    """
    own = own_of(mountpoint, default)
    has_disk = os.path.ismount(os.path.realpath(default))
    if not has_disk and _has_cached(own):
        say(f"dsfs: the cache of {mountpoint} is in {own}, as before (--cache-dir names another)")
        return own
    user = user_of(default)
    if user is None:
        return default
    if has_disk:
        raise MountError(
            f"cache directory {default} is used by {user}, and beside it is another disk (choose one with --cache-dir)"
        )
    say(f"dsfs: the cache of {mountpoint} is in {own}, as {user} uses {default} (--cache-dir names another)")
    return own


def _is_default(directory: str) -> bool:
    """By its name: it is not looked at, as its disk may hang."""
    try:
        return os.path.abspath(directory) == os.path.abspath(default_cache_dir())
    except ConfigError:  # this user has none
        return False


def _has_cached(directory: str) -> bool:
    """Whether objects lie there: a start that failed leaves the directories alone."""
    return any(names for _directory, _directories, names in os.walk(f"{directory}/objects"))
