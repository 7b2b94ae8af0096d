"""The server: the life of its process, from the stand-by that forks it to its exit status.

python -m daemon.server RUNTIME_DIR            a stand-by (daemon/standby.py) that forks servers when it is told to
python -m daemon.server RUNTIME_DIR --serve    as `dsfs serve`: it waits for its keeper, and ends with its server
"""

from __future__ import annotations

import daemon.lean  # noqa: F401  # first, or it is too late

# isort: split
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import structlog
import trio
from prometheus_client import disable_created_metrics

from daemon import logs, standby
from daemon.preload import preload
from daemon.rooms import open_rooms
from daemon.serving import Serving
from daemon.settings import Settings
from dsfs.errors import AnotherServes, DsfsError, first_of
from dsfs.fuse.keeper_client import connect
from dsfs.fuse.patience import kernel_patience_s, within_patience

log = structlog.get_logger()

_DESCRIPTORS = 4096  # cached objects that are open take up to 1,536, requests in flight 128, datasets a few each


async def serve(settings: Settings) -> None:
    """Run one server until its mounts are gone or it is told to stop."""
    # Heard until the cache is closed: an unmount ends the session, and the keeper's signal comes right behind.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with AsyncExitStack() as stack:
            keeper = await stack.enter_async_context(connect(settings.keeper_socket, _keeper_starter(settings)))
            try:
                await Serving(await open_rooms(settings, keeper, stack)).run(signals)
            except DsfsError as error:
                await keeper.failed(str(error))
                raise
            except BaseExceptionGroup as group:
                if (expected := first_of(group, DsfsError)) is not None:
                    await keeper.failed(str(expected))
                raise


def _keeper_starter(settings: Settings) -> Callable[[], Awaitable[None]] | None:
    """What starts a keeper in place of one that died; None when keepers are started by others."""
    if settings.keeper_alone:
        return None
    argv = [sys.executable, "-P", "-m", "daemon.keeper", settings.runtime_dir, "--adopt"]

    async def start() -> None:
        # It leaves us at once, to be the child of whoever reaps orphans: it has to outlive this process.
        try:
            await trio.run_process(argv, check=True, cwd="/")
        except subprocess.CalledProcessError as error:  # its runtime directory cannot be read, say: tried again
            raise OSError(f"a keeper cannot be started (status {error.returncode}, see above)") from error

    return start


def main(runtime_dir: str, *flags: str) -> int:
    settings = Settings.load(runtime_dir)
    for flag in flags:
        if flag.startswith("--log="):
            log_fd = int(flag.removeprefix("--log="))
            os.dup2(log_fd, 2)
            os.close(log_fd)
    import_more = _nothing_more if standby.NOTHING_MORE in flags else partial(preload, settings)
    return standby.run(settings.keeper_socket, partial(run, runtime_dir), import_more, foreground="--serve" in flags)


def _nothing_more() -> None:
    return


def run(runtime_dir: str) -> int:
    """One server, in a process of its own; its exit status."""
    settings = Settings.load(runtime_dir)
    wanted_s = settings.read_timeout_s
    settings = replace(settings, read_timeout_s=within_patience(wanted_s, kernel_patience_s()))
    logs.configure(debug=settings.debug, log_format=settings.log_format)
    if settings.read_timeout_s < wanted_s:
        log.warning("read timeout is cut: the kernel would end the mount", read_timeout_s=settings.read_timeout_s)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads
    _provide_descriptors()
    try:
        trio.run(serve, settings)
    except AnotherServes as error:
        log.info("not needed", reason=str(error))
    except DsfsError as error:
        log.error("server failed", reason=str(error))
        return 1
    except BaseExceptionGroup as group:
        _expected, rest = group.split(DsfsError)
        if rest is not None:
            raise
        log.error("server failed", reason=str(first_of(group, DsfsError)))
        return 1
    return 0


def _provide_descriptors() -> None:
    """As many as we may have, and a table for most of them now: once there are threads, each time that it doubles
    takes 6 to 24 ms (expand_files in fs/file.c waits for RCU), which the loop would wait for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.close(fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, min(hard, _DESCRIPTORS) - 1))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
