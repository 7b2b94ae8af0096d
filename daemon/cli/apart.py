"""``dsfs keeper`` and ``dsfs serve``: the two processes of a mount, started apart (two pods, two systemd units)."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from daemon import running
from daemon.cli import mount
from daemon.cli.options import CacheDir
from daemon.cli.output import say
from daemon.control.client import ask_keeper
from daemon.locks import is_held
from daemon.settings import DEFAULT_CACHE_SIZE, DEFAULT_SCRUB_EVERY, Settings
from dsfs.errors import ConfigError, MountError
from dsfs.fuse import capabilities
from dsfs.fuse.patience import kernel_patience_s, within_patience
from dsfs.manifest.durations import parse_duration

_LOOK_S = 2.0


def keeper(
    socket: Annotated[str, typer.Option(metavar="PATH", help="Where servers find it.")],
    patience: Annotated[
        str, typer.Option(metavar="DURATION", help="Without a server for so long, whoever waits gets ETIMEDOUT.")
    ] = "2m",
) -> None:
    """Hold one mount for servers that come and go (dsfs serve). Ends with SIGTERM and leaves the mount to its server.

    Under systemd with FileDescriptorStoreMax= a restart of it keeps the mount too.
    """
    try:
        patience_s = parse_duration(patience)
    except ConfigError as error:
        raise typer.BadParameter(f"--patience {patience}: {error}") from None
    if not capabilities.look().direct:
        raise MountError("dsfs keeper needs /dev/fuse and CAP_SYS_ADMIN (run it as root)")
    patience_s = within_patience(patience_s, kernel_patience_s())
    path = os.path.abspath(socket)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if is_held(lock):
        raise MountError(f"{path}: another keeper listens there (pid {os.pread(lock, 20, 0).decode().strip()})")
    os.close(lock)
    os.execv(sys.executable, [*mount.PYTHON, "daemon.keeper", "--alone", path, str(patience_s)])


def serve(
    where: mount.Where,
    keeper: Annotated[str, typer.Option(metavar="PATH", help="The socket of a dsfs keeper; waits until it is there.")],
    file: mount.Files = None,
    cache_dir: CacheDir = None,
    cache_size: mount.CacheSize = DEFAULT_CACHE_SIZE,
    shared_cache: mount.SharedCache = None,
    shared_cache_size: mount.SharedCacheSize = DEFAULT_CACHE_SIZE,
    min_free: mount.MinFree = None,
    scrub_every: mount.ScrubEvery = DEFAULT_SCRUB_EVERY,
    http: mount.Http = None,
    option: mount.SourceOptions = None,
    secrets: mount.Secrets = None,
    pvc_root: mount.PvcRoot = None,
    read_timeout: mount.ReadTimeout = "30s",
    namespace: mount.Namespaces = None,
    log_format: mount.LogFormat = "console",
    count_opens: mount.CountOpens = True,
) -> None:
    """As mount --foreground, through a keeper that runs already; one that is started beside another takes over."""
    if not capabilities.look().sys_admin:
        raise MountError("dsfs serve needs CAP_SYS_ADMIN (run it as root)")
    path = os.path.abspath(keeper)
    settings = mount.settings_of(
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
        keeper=path,
    )
    settings = replace(settings, manifests_digest=_digest(settings.manifest_paths))
    _prepare(settings, path)
    os.execv(sys.executable, [*mount.PYTHON, "daemon.server", settings.runtime_dir, "--serve"])


def _digest(paths: Sequence[str]) -> str:
    """Of what manifests say now; "" if there are none to read, or they cannot be: a mount that is there goes on as it
    is, and its server tells why (daemon/manifest_files.py)."""
    if not paths:
        return ""
    from daemon.wanted import to_text  # with models and YAML, 0.1 s that every other verb does without
    from dsfs.manifest.documents import documents_of, texts_of

    try:
        texts = texts_of(paths, none_yet=True)
        documents = documents_of(texts)
        if not texts:
            raise ConfigError(f"{', '.join(paths)}: no manifests are there (a mount that shows datasets goes on)")
    except ConfigError as error:
        say(f"dsfs: {error}")
        return ""
    return hashlib.sha256(to_text(documents).encode()).hexdigest()


def _prepare(settings: Settings, socket: str) -> None:
    """The runtime directory, which the server before this one may have used; its journals stay. Raises MountError."""
    directory = settings.runtime_dir
    known = running.look(directory)
    if known is not None and known.alive and known.keeper_socket != socket:
        raise MountError(
            f"{settings.mountpoint}: dsfs is mounted there already (pid {known.keeper_pid}); unmount it first"
        )
    os.makedirs(f"{directory}/journal", mode=0o700, exist_ok=True)
    file = f"{directory}/settings.json"
    before_ns = os.stat(file).st_mtime_ns if os.path.exists(file) else 0
    with open(f"{directory}/keeper.json", "w", encoding="utf-8") as config:
        json.dump({"mountpoint": settings.mountpoint, "socket": socket, "lock": f"{socket}.lock"}, config)
    found = running.look(directory)
    if found is not None and found.alive:  # else it comes later
        paths = ask_keeper(found, {"op": "look"}, _LOOK_S)["paths"]
        if paths and paths[0] != settings.mountpoint:
            running.forget(directory)
            raise MountError(
                f"{socket}: this keeper holds {paths[0]} (dsfs unmount {paths[0]}, or start another keeper)"
            )
    settings.save()
    if before_ns:  # what the tree of namespaces shows as its time
        os.utime(file, ns=(before_ns, before_ns))
