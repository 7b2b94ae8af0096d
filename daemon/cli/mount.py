"""``dsfs mount`` and ``dsfs unmount``."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, TypeVar

import typer

from daemon import running
from daemon.cli.cache_choice import save_with_cache
from daemon.cli.foreground import Ending, stay
from daemon.cli.options import CacheDir, Mountpoint, one_mountpoint
from daemon.cli.output import say
from daemon.control.client import ask_keeper
from daemon.dead import DEAD, NO_ANSWER, errno_of_look
from daemon.keeping.mounting import TYPES
from daemon.settings import (
    DEFAULT_CACHE_SIZE,
    DEFAULT_SCRUB_EVERY,
    LOG_FORMATS,
    MIN_FREE,
    MIN_FREE_MOST,
    Settings,
    default_cache_dir,
    parse_address,
)
from daemon.users import check_unused
from dsfs.client import is_below, place_of
from dsfs.errors import ConfigError, MountError
from dsfs.fuse import capabilities
from dsfs.fuse.patience import kernel_patience_s, within_patience
from dsfs.manifest.durations import parse_duration
from dsfs.manifest.names import check_namespace
from dsfs.manifest.sizes import parse_size_or_percent

PYTHON = [sys.executable, "-P", "-m"]  # -P: a folder named "daemon" in the current directory is not ours
_UNMOUNT_S = 20.0
_RESTART_S = 90.0
_LOOK_S = 2.0
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>

T = TypeVar("T")

Where = Annotated[list[str], typer.Argument(metavar="[SOURCE_URI] MOUNTPOINT", help="What to mount, and where.")]
Files = Annotated[
    list[str] | None,
    typer.Option("-f", "--file", metavar="FILE_OR_DIR", help="Manifests: a file or a directory; may be repeated."),
]
CacheSize = Annotated[str, typer.Option(metavar="SIZE", help="How much the cache may use, such as 200GiB or 80%.")]
SharedCache = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="A directory that all nodes mount: what one of them fetched, the others take."),
]
SharedCacheSize = Annotated[
    str, typer.Option(metavar="SIZE", help="How much the shared cache may use, such as 20TiB or 80%.")
]
MinFree = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="What it leaves free of its disk; 0: none. [default: 5%, at most 2GiB]"),
]
ScrubEvery = Annotated[
    str,
    typer.Option(metavar="DURATION", help="In which time everything cached is checked in the background; 0: never."),
]
LogFormat = Annotated[str, typer.Option(metavar="console|json", help="How the server writes its log.")]
Http = Annotated[
    str | None,
    typer.Option(metavar="[HOST]:PORT", help="Serve metrics, status and health there; :PORT on all addresses."),
]
SourceOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A source option; may be repeated.")
]
Secrets = Annotated[
    list[str] | None, typer.Option(metavar="DIR", help="A directory per secret: DIR/[NAMESPACE/]SECRET/KEY.")
]
PvcRoot = Annotated[
    str | None, typer.Option(metavar="DIR", help="Where claims lie on this node: DIR/[NAMESPACE/]CLAIM.")
]
ReadTimeout = Annotated[str, typer.Option(metavar="DURATION", help="A read whose origin is gone ends within this.")]
Namespaces = Annotated[list[str] | None, typer.Option(metavar="NS", help="Show only what NS may see; may be repeated.")]
CountOpens = Annotated[
    bool, typer.Option(help="Count opens that the kernel serves alone, by dataset and pod (needs root).")
]


def mount(
    where: Where,
    file: Files = None,
    cache_dir: CacheDir = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    shared_cache: SharedCache = None,
    shared_cache_size: SharedCacheSize = DEFAULT_CACHE_SIZE,
    min_free: MinFree = None,
    scrub_every: ScrubEvery = DEFAULT_SCRUB_EVERY,
    session: Annotated[str, typer.Option(metavar="auto|direct|pyfuse3", help="How to speak to the kernel.")] = "auto",
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until it is unmounted or stopped.")] = False,
    http: Http = None,
    option: SourceOptions = None,
    secrets: Secrets = None,
    pvc_root: PvcRoot = None,
    read_timeout: ReadTimeout = "30s",
    namespace: Namespaces = None,
    log_format: LogFormat = "console",
    count_opens: CountOpens = True,
    allow_other: Annotated[
        bool, typer.Option("--allow-other", help="Without root: let other users in too, as root's mounts do.")
    ] = False,
) -> None:
    """Mount one dataset (SOURCE_URI MOUNTPOINT), or those of manifests (-f FILE_OR_DIR MOUNTPOINT)."""
    if session not in ("auto", "direct", "pyfuse3"):
        raise typer.BadParameter(f"--session {session}: is not auto, direct or pyfuse3")
    settings = settings_of(
        where,
        file=file,
        cache_dir=cache_dir,
        cache_size=cache_size,
        shared_cache=shared_cache,
        shared_cache_size=shared_cache_size,
        min_free=min_free,
        scrub_every=scrub_every,
        http=http,
        option=option,
        secrets=secrets,
        pvc_root=pvc_root,
        read_timeout=read_timeout,
        namespace=namespace,
        log_format=log_format,
        count_opens=count_opens,
    )
    mountpoint = settings.mountpoint
    chosen = capabilities.choose_session(session, capabilities.look())
    with running.starting(mountpoint):
        check_mountpoint(mountpoint)
        runtime_dir = running.prepare(mountpoint)
        settings = save_with_cache(replace(settings, session=chosen, allow_other=allow_other), cache_dir)
        ending = Ending(foreground=foreground)
        keeper, answer = _start_keeper(settings, ending, foreground=foreground)
        if "error" in answer:
            keeper.wait()
            log = f"{runtime_dir}/server.log"
            if answer.get("unexpected") and os.path.exists(log):
                running.forget_all_but_log(runtime_dir)
                raise MountError(f"{answer['error']} (see {log})")
            running.forget(runtime_dir)  # or `dsfs status` would go on to show what never was
            raise MountError(str(answer["error"]))
    if foreground:
        raise typer.Exit(stay(mountpoint, runtime_dir, keeper.pid, ending))


def settings_of(
    where: list[str],
    *,
    file: list[str] | None,
    cache_dir: str | None,
    cache_size: str,
    shared_cache: str | None,
    shared_cache_size: str,
    min_free: str | None,
    scrub_every: str,
    http: str | None,
    option: list[str] | None,
    secrets: list[str] | None,
    pvc_root: str | None,
    read_timeout: str,
    namespace: list[str] | None,
    log_format: str,
    count_opens: bool,
    keeper: str | None = None,
) -> Settings:
    """What the flags of ``mount`` and ``serve`` ask for. Raises BadParameter."""
    if len(where) != (1 if file else 2):
        raise typer.BadParameter("give SOURCE_URI and MOUNTPOINT, or -f FILE_OR_DIR and MOUNTPOINT")
    timeout_s = _usage("--read-timeout", parse_duration, read_timeout)
    _usage("--cache-size", parse_size_or_percent, cache_size)
    _usage("--shared-cache-size", parse_size_or_percent, shared_cache_size)
    if shared_cache_size != DEFAULT_CACHE_SIZE and shared_cache is None:
        raise typer.BadParameter("--shared-cache-size goes with --shared-cache DIR")
    if min_free not in ("0", None):
        _usage("--min-free", parse_size_or_percent, min_free)
    scrub_every_s = 0.0 if scrub_every == "0" else _usage("--scrub-every", parse_duration, scrub_every)
    if log_format not in LOG_FORMATS:
        raise typer.BadParameter(f"--log-format {log_format}: is not {' or '.join(LOG_FORMATS)}")
    if http is not None:
        _usage("", parse_address, http)
    if option and file:
        raise typer.BadParameter("--option goes with SOURCE_URI; in a manifest it is spec.source.options")
    if namespace and not file:
        raise typer.BadParameter("--namespace goes with -f; a single dataset is seen by whoever mounts it")
    for name in namespace or ():
        try:
            check_namespace(name)
        except ValueError as error:
            raise typer.BadParameter(f"--namespace {name}: {error}") from None
    for path in file or ():
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise typer.BadParameter(f"-f {path}: is neither a file nor a directory, so no later server could read it")
    mountpoint = place_of(where[-1])
    for flag, directory in (("--cache-dir", cache_dir), ("--shared-cache", shared_cache)):
        if directory is not None and is_below(os.path.realpath(directory), mountpoint):
            raise typer.BadParameter(f"{flag} {directory}: is in the mount point {mountpoint}, which is to cover it")
    return Settings(
        mountpoint=mountpoint,
        runtime_dir=running.runtime_dir_of(mountpoint),
        cache_dir=os.path.abspath(cache_dir or default_cache_dir()),
        cache_size=cache_size,
        shared_cache=os.path.abspath(shared_cache) if shared_cache else None,
        shared_cache_size=shared_cache_size,
        min_free=min_free or MIN_FREE,
        min_free_most=0 if min_free else MIN_FREE_MOST,
        scrub_every_s=scrub_every_s,
        source_uri=None if file else where[0],
        source_options=_options(option or []),
        manifest_paths=tuple(os.path.abspath(path) for path in file or []),
        base_dir=os.getcwd(),
        http=http,
        secrets_dirs=tuple(os.path.abspath(path) for path in secrets or []),
        pvc_root=os.path.abspath(pvc_root) if pvc_root else None,
        read_timeout_s=timeout_s,
        namespaces=tuple(namespace or []),
        uid=os.getuid(),
        gid=os.getgid(),
        log_format=log_format,
        count_opens=count_opens,
        debug=bool(os.environ.get("DSFS_DEBUG")),
        keeper=keeper,
    )


def unmount(
    mountpoint: Annotated[str, typer.Argument(metavar="MOUNTPOINT", help="What to unmount.")],
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Also while somebody uses it, whose reads may fail from then on.")
    ] = False,
) -> None:
    """Unmount and stop. Refused while somebody uses it."""
    place = place_of(mountpoint)
    known = [each for each in running.all_mounts() if each.mountpoint == place]
    found = max(known, key=lambda each: each.alive, default=None)  # one that has ended may have left its own
    if found is None or not found.alive:
        if not _is_ours(place):
            raise MountError(f"{place}: dsfs has nothing mounted there")
        if not lazy and errno_of_look(place, _LOOK_S) not in DEAD:
            check_unused(place, found.runtime_dir if found else "")  # another user's has its own elsewhere
        _detach_all(place)
    else:
        if not lazy:
            check_unused(place, found.runtime_dir)
        if found.keeper_alone:
            ask_keeper(found, {"op": "end"}, _UNMOUNT_S)
            running.forget(found.runtime_dir)
            return
        try:
            pidfd = os.pidfd_open(found.keeper_pid)
        except ProcessLookupError:
            pidfd = -1
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)  # one that was stopped would never hear it
            ended, _w, _x = select.select([pidfd], [], [], _UNMOUNT_S)
            os.close(pidfd)
            if not ended:
                raise MountError(f"{place}: its keeper (pid {found.keeper_pid}) does not stop (kill -9 it)")
        if _is_ours(place):
            _detach_all(place)
    if found is not None:
        running.forget(found.runtime_dir)


def restart(
    where: Annotated[str | None, typer.Argument(metavar="[MOUNTPOINT]", help="Which mount.")] = None,
    mountpoint: Mountpoint = None,
) -> None:
    """Have a new server take over, as after an upgrade of dsfs. No read fails."""
    found = running.find(one_mountpoint(where, mountpoint))
    ask_keeper(found, {"op": "restart"}, _RESTART_S)


def check_mountpoint(mountpoint: str) -> None:
    """A directory that exists, is empty and is not in use; dead mounts of ours on it are cleared. Raises MountError."""
    if _is_ours(mountpoint):
        live = next((each for each in running.all_mounts() if each.mountpoint == mountpoint and each.alive), None)
        if live is not None:
            raise MountError(f"{mountpoint}: dsfs is mounted there already (pid {live.keeper_pid}); unmount it first")
        if errno_of_look(mountpoint, _LOOK_S) not in DEAD:
            raise MountError(f"{mountpoint}: a dsfs of somebody else is mounted there; unmount it first")
        _detach_all(mountpoint)
        say(f"dsfs: cleared a dead mount at {mountpoint}")
    if running.mounted_at(mountpoint) and errno_of_look(mountpoint, _LOOK_S) == NO_ANSWER:
        raise MountError(f"mount point {mountpoint}: what is mounted there does not answer (umount -l {mountpoint})")
    try:
        names = os.listdir(mountpoint)
    except FileNotFoundError:
        raise MountError(f"mount point {mountpoint} does not exist (make it with mkdir -p)") from None
    except NotADirectoryError:
        raise MountError(f"mount point {mountpoint} is not a directory") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountError(
                f"mount point {mountpoint} is a dead mount of another program (clear it with umount -l {mountpoint})"
            ) from None
        raise MountError(f"mount point {mountpoint}: {error.strerror}") from error
    if names:
        raise MountError(f"mount point {mountpoint} is not empty (choose an empty directory)")


def _is_ours(place: str) -> bool:
    types = running.mounted_at(place)
    return bool(types) and types[-1] in TYPES


def _detach_all(place: str) -> None:
    while _is_ours(place):
        argv = ["umount", "-l", "-i"] if os.getuid() == 0 else ["fusermount3", "-u", "-z"]
        done = subprocess.run([*argv, place], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MountError(f"{place}: cannot be unmounted: {done.stderr.strip()}")


def _start_keeper(
    settings: Settings, ending: Ending, *, foreground: bool
) -> tuple[subprocess.Popen[bytes], dict[str, object]]:
    """The keeper, and how the start went."""
    with open(f"{settings.runtime_dir}/keeper.json", "w", encoding="utf-8") as file:
        json.dump(
            {
                "mountpoint": settings.mountpoint,
                "server_argv": [*PYTHON, "daemon.server"],
                "own_mounts": settings.session == "direct",
                # of who waits while no server can be started
                "patience_s": within_patience(settings.read_timeout_s, kernel_patience_s()),
                **({"ends_with": os.getpid()} if foreground else {}),
            },
            file,
        )
    ready_r, ready_w = os.pipe()
    log_fd = None
    if foreground:  # a keeper that replaces one that was killed becomes our child
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if not foreground:
        log_fd = os.open(f"{settings.runtime_dir}/server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    keeper = subprocess.Popen(
        [*PYTHON, "daemon.keeper", settings.runtime_dir, str(ready_w)],
        stdin=subprocess.DEVNULL,
        stdout=log_fd,
        stderr=log_fd,
        pass_fds=[ready_w],
        cwd="/",
        start_new_session=True,  # what the terminal sends is for us alone: a keeper takes SIGHUP for a restart
    )
    os.close(ready_w)
    if log_fd is not None:
        os.close(log_fd)
    with open(ready_r, "rb") as pipe:
        line = pipe.readline() if ending.wait_for(ready_r) else b""
    if ending.noted:  # no mount comes later
        keeper.terminate()
        try:
            keeper.wait(_UNMOUNT_S)
        except subprocess.TimeoutExpired:
            raise MountError(
                f"{settings.mountpoint}: its keeper (pid {keeper.pid}) does not stop (kill -9 it)"
            ) from None
        running.forget(settings.runtime_dir)  # or `dsfs status` would go on to show what never was
        raise KeyboardInterrupt
    answer: dict[str, object] = {"error": "the keeper ended before it was ready", "unexpected": True}
    if line:
        answer = json.loads(line)
    if "error" in answer or not foreground:
        ending.over()
    return keeper, answer


def _options(pairs: list[str]) -> dict[str, str]:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"--option {key}: is not KEY=VALUE")
        options[key] = value
    return options


def _usage(flag: str, parse: Callable[[str], T], text: str) -> T:
    """A flag's value, or wrong usage."""
    try:
        return parse(text)
    except ConfigError as error:
        raise typer.BadParameter(f"{flag} {text}: {error}" if flag else str(error)) from None
