"""Flags and defaults become frozen settings.

The command line makes them and writes them into the mount's runtime directory; every server of that mount reads them
there. Credentials are not among them: a server inherits the environment, and reads Secrets where they lie.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dsfs.errors import ConfigError
from dsfs.manifest.sizes import Percent, parse_size_or_percent

DEFAULT_CACHE_SIZE = "80%"
MIN_FREE, MIN_FREE_MOST = "5%", 2 << 30
"""Of the disk, and bytes, unless told otherwise: on a large disk that others fill the cache would keep nothing."""
DEFAULT_READ_TIMEOUT_S = 30.0
DEFAULT_SCRUB_EVERY = "7d"
DEFAULT_SCRUB_EVERY_S = 7 * 86400.0
LOG_FORMATS = ("console", "json")
_MEMORY_SHARE = 1 / 16
_LEAST_MEMORY, _MOST_MEMORY = 64 << 20, 512 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """All that one mount was asked for. Sizes in bytes unless the name says otherwise."""

    mountpoint: str
    runtime_dir: str
    cache_dir: str
    cache_size: str = DEFAULT_CACHE_SIZE
    shared_cache: str | None = None
    shared_cache_size: str = DEFAULT_CACHE_SIZE
    min_free: str = MIN_FREE
    min_free_most: int = 0
    """Bytes that ``min_free`` is at most; 0: whatever it says."""
    session: str = "direct"
    source_uri: str | None = None
    source_options: dict[str, str] = field(default_factory=dict)
    manifest_paths: tuple[str, ...] = ()
    base_dir: str = "/"
    http: str | None = None
    secrets_dirs: tuple[str, ...] = ()
    pvc_root: str | None = None
    read_timeout_s: float = DEFAULT_READ_TIMEOUT_S
    scrub_every_s: float = DEFAULT_SCRUB_EVERY_S
    """In which time the background check goes through the cache once; 0: never."""
    namespaces: tuple[str, ...] = ()
    uid: int = 0
    gid: int = 0
    debug: bool = False
    log_format: str = "console"
    count_opens: bool = True
    allow_other: bool = False
    """Whether others may enter a mount that is not root's."""
    keeper: str | None = None
    manifests_digest: str = ""
    """Of what the files of ``manifest_paths`` said when ``dsfs serve`` was started: what it shows follows them. "":
    it shows what the server before it has shown."""

    @property
    def keeper_socket(self) -> str:
        """Where the keeper listens."""
        return self.keeper or f"{self.runtime_dir}/keeper.sock"

    @property
    def keeper_alone(self) -> bool:
        """Whether the keeper is started by others (``dsfs keeper``), and waits for the servers that they start."""
        return self.keeper is not None

    def save(self) -> None:
        """Where every server of this mount finds them."""
        path = f"{self.runtime_dir}/settings.json"
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        os.rename(f"{path}.new", path)  # others look at it

    @classmethod
    def load(cls, runtime_dir: str) -> Settings:
        with open(f"{runtime_dir}/settings.json", encoding="utf-8") as file:
            raw: dict[str, Any] = json.load(file)
        known = {each.name for each in fields(cls)}  # a later version, which was there before a downgrade, knows more
        raw = {key: value for key, value in raw.items() if key in known}
        for key in ("manifest_paths", "secrets_dirs", "namespaces"):
            raw[key] = tuple(raw[key])
        return cls(**raw)

    @classmethod
    def of(cls, runtime_dir: str) -> Settings | None:
        """As ``load``, for looking: None when they are half written or removed, or of a version that differs."""
        try:
            return cls.load(runtime_dir)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def cache_limit(self) -> int:
        """Bytes that the cache directory may use now; a percentage follows the size of its file system."""
        return _bytes_of(self.cache_size, self.cache_dir)

    def least_free(self) -> int:
        """Bytes that shall stay free on the file system of the cache, whoever fills it."""
        least = 0 if self.min_free == "0" else _bytes_of(self.min_free, self.cache_dir)
        return min(least, self.min_free_most or least)

    def shared_cache_limit(self, root: str) -> int:
        """As ``cache_limit``, for the shared cache at ``root``; waits for its file system."""
        return _bytes_of(self.shared_cache_size, root)


def _bytes_of(text: str, directory: str) -> int:
    size = parse_size_or_percent(text)
    if isinstance(size, Percent):
        disk = os.statvfs(directory)
        return size.of(disk.f_blocks * disk.f_frsize)
    return size


def least_free(directory: str) -> int:
    """Bytes: as ``Settings.least_free`` of a cache in ``directory``, unless told otherwise."""
    return min(_bytes_of(MIN_FREE, directory), MIN_FREE_MOST)


def default_cache_dir(environ: Mapping[str, str] = os.environ) -> str:
    """Root's cache is the node's; a user's lies where XDG says. Raises ConfigError when that is nowhere."""
    if os.getuid() == 0:
        return "/var/cache/dsfs"
    base = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise ConfigError("this user has no home directory for a cache: say where it is to be (--cache-dir DIR)")
    return f"{base}/dsfs"


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT of ``--http``; [::1]:9100 for IPv6, and no host for all addresses of both. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch("[0-9]+", port) or (":" in host and not host.startswith("[")):
        raise ConfigError(f"--http {text}: is not HOST:PORT (such as 127.0.0.1:9100)")
    if len(port) > 5 or int(port) > 65535:
        raise ConfigError(f"--http {text}: there is no port above 65535 (choose one such as 9100)")
    return host.strip("[]"), int(port)


def memory_limit_bytes() -> int:
    """What this process may use: the smallest limit of its cgroups, else the machine's memory."""
    limits = [_machine_memory_bytes()]
    try:
        with open("/proc/self/cgroup", encoding="ascii") as cgroups:
            group = next((line.strip().split(":", 2)[2] for line in cgroups if line.startswith("0::")), "/")
    except OSError:
        group = "/"
    while True:
        try:
            with open(f"/sys/fs/cgroup{group.rstrip('/')}/memory.max", encoding="ascii") as file:
                text = file.read().strip()
            if text.isdigit():
                limits.append(int(text))
        except OSError:
            pass  # the root group has no such file, and a container may see none at all
        if group in ("", "/"):
            return min(limits)
        group = os.path.dirname(group)


def readers_memory_bytes(settings: Settings) -> int:
    """What may hold the pages of files that are read. The kernel charges a page to the cgroup of who reads it first: of
    a mount whose keeper and server are apart, as on a cluster's nodes, those are others than ours."""
    return _machine_memory_bytes() if settings.keeper_alone else memory_limit_bytes()


def _machine_memory_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        return int(meminfo.readline().split()[1]) * 1024


def fetch_memory_bytes() -> int:
    """The budget of all bytes in flight."""
    return max(_LEAST_MEMORY, min(_MOST_MEMORY, int(memory_limit_bytes() * _MEMORY_SHARE)))
