"""Checks with remedies: what this machine can do, and what to install for more. Never enters a mount."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions

from daemon import running
from daemon.cache_users import unused_own
from daemon.dead import DeadMount, dead_mounts
from daemon.settings import DEFAULT_READ_TIMEOUT_S, Settings, default_cache_dir, least_free
from dsfs.errors import ConfigError
from dsfs.fuse import capabilities
from dsfs.fuse.patience import TAKE_OVER_S, kernel_patience_s, within_patience
from dsfs.manifest.sizes import size_text
from dsfs.sources.nfs_library import library


@dataclass(frozen=True, slots=True)
class Check:
    """One line. ``fatal``: without it nothing can be mounted."""

    name: str
    ok: bool
    result: str
    remedy: str = ""
    fatal: bool = False

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def examine() -> list[Check]:
    can = capabilities.look()
    kernel = f"{can.kernel[0]}.{can.kernel[1]}"
    no_device, not_portable = can.lacks_device(), can.lacks_for_portable()
    checks = [
        Check(
            "/dev/fuse",
            no_device is None,
            "can be opened" if no_device is None else no_device.what.removeprefix("/dev/fuse: "),
            "" if no_device is None else no_device.remedy,
            fatal=no_device is not None,
        ),
        Check(
            "direct session",
            can.direct,
            "yes" if can.direct else f"no: needs {'CAP_SYS_ADMIN' if can.device else '/dev/fuse'}",
            "" if can.direct else "run as root for the fastest read paths and for restarts without failed reads",
            fatal=not can.direct and not can.portable,
        ),
        Check(
            "passthrough",
            can.passthrough,
            f"kernel {kernel}" + ("" if can.kernel >= (6, 9) else ", needs 6.9"),
            "" if can.passthrough else "a kernel of 6.9 or later, and root; until then the daemon copies",
        ),
        Check(
            "resume after a crash",
            can.direct and can.kernel >= (6, 9),
            f"kernel {kernel}" + ("" if can.kernel >= (6, 9) else ", repeats requests from 6.9 on"),
        ),
        Check(
            "pyfuse3 session",
            not_portable is None,
            "yes" if not_portable is None else f"no: {not_portable.what}",
            "" if not_portable is None else not_portable.remedy,
        ),
    ]
    checks.append(kernel_patience(kernel_patience_s(), _longest_read()))
    checks.append(_cache_directory())
    checks += _unused_caches()
    checks.append(_import_clash())
    checks += [_program("git", "git", "Git datasets"), _program("ssh", "openssh-client", "Git datasets over SSH")]
    checks.append(_libnfs())
    checks += [_dead_mount(each) for each in dead_mounts()]
    return checks


def _longest_read() -> float:
    """The longest read timeout of what is mounted, and of what would be, s."""
    timeouts = [DEFAULT_READ_TIMEOUT_S]
    for each in running.all_mounts():
        settings = Settings.of(each.runtime_dir)
        if settings is not None:
            timeouts.append(settings.read_timeout_s)
    return max(timeouts)


def kernel_patience(patience_s: float | None, read_timeout_s: float) -> Check:
    """The kernel aborts a connection whose oldest request is older than the administrator has set."""
    name = "kernel's request timeout"
    if patience_s is None:
        return Check(name, True, "off")
    needed_s = read_timeout_s + TAKE_OVER_S
    if patience_s >= needed_s:
        return Check(name, True, f"{patience_s:g} s")
    cut_s = within_patience(read_timeout_s, patience_s)
    return Check(
        name,
        False,
        f"{patience_s:g} s: a read of {read_timeout_s:g} s and a take-over are longer, so reads are cut to {cut_s:g} s",
        f"sysctl fs.fuse.default_request_timeout=0 fs.fuse.max_request_timeout=0 (or {needed_s:g} and more)",
    )


def _cache_directory() -> Check:
    try:
        path = default_cache_dir()
    except ConfigError as error:
        return Check("cache directory", False, str(error), "name one with --cache-dir")
    there = os.path.abspath(path)
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    if not os.access(there, os.W_OK):
        return Check("cache directory", False, f"{path} cannot be written", "choose another with --cache-dir")
    disk = os.statvfs(there)
    free, least = disk.f_bavail * disk.f_frsize, least_free(there)
    ok = free > least
    result = f"{path}, {size_text(free)} free, {size_text(least)} of it left alone (--min-free)"
    return Check(
        "cache directory",
        ok,
        result,
        "" if ok else "nothing more is cached there: make room on that disk, or --min-free less",
    )


def _unused_caches() -> list[Check]:
    """Nobody removes them but the user, as their mounts may come back and find what they have cached."""
    try:
        unused = unused_own(default_cache_dir())
    except ConfigError:  # said by the check before
        return []
    return [
        Check("cache of no mount", True, f"{path} is not in use", f"rm -r {path}, unless its mount is to come back")
        for path in unused
    ]


def _program(name: str, package: str, what: str) -> Check:
    there = shutil.which(name)
    return Check(name, there is not None, there or f"not here: no {what}", "" if there else f"apt install {package}")


def _libnfs() -> Check:
    try:
        library()
    except ConfigError as error:
        return Check("libnfs", False, "not here: no NFS datasets without a mount of the export", str(error))
    return Check("libnfs", True, "is here")


def _import_clash() -> Check:
    """python-daemon ships a package ``daemon`` too, and pip overwrites silently."""
    owners = sorted(set(packages_distributions().get("daemon", [])) - {"dsfs"})
    if not owners:
        return Check("python packages", True, "no clash")
    return Check(
        "python packages",
        False,
        f"{owners[0]} has a package named daemon too",
        "install dsfs into an environment of its own (pipx install dsfs)",
    )


def _dead_mount(found: DeadMount) -> Check:
    state = "does not answer" if found.hangs else "its processes are gone"
    return Check(
        "dead mount",
        False,
        f"{found.path}: {state} (connection {found.connection})",
        f"dsfs doctor --clear, or mount it anew; by hand: echo 1 > {found.abort}; umount -l {found.path}",
    )
