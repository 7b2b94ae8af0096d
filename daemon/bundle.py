"""``dsfs doctor --bundle``: what a maintainer needs to see of a node, in one archive, with no secret in it.

Nothing here enters a mount, and every question has a bound: it is asked for when something hangs. Every text goes
through ``scrub``; manifests, cached files and catalogs stay where they are.
"""

from __future__ import annotations

import io
import json
import os
import platform
import socket
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import distributions

from daemon import running
from daemon.doctor import Check
from daemon.scrub import Scrubber, is_secret_name, known_secrets
from daemon.settings import Settings

_ANSWER_S = 5.0
_LOG_BYTES = 512 << 10
_LARGEST_ANSWER_BYTES = 64 << 20
_CONNECTIONS = "/sys/fs/fuse/connections"
_SYSCTLS = "/proc/sys/fs/fuse"
_PROCESS_FILES = ("status", "wchan", "stack", "limits", "io", "cgroup", "oom_score_adj", "mountinfo")
_MACHINE_FILES = ("/proc/version", "/proc/meminfo", "/proc/loadavg", "/proc/pressure/io", "/proc/pressure/memory")
_README = """\
What `dsfs doctor --bundle` saw on this node. Secrets that are known by value or by their looks are replaced by ***.
Names of datasets, addresses of sources, paths and host names are in it: look it through before you hand it on.
"""


def write_bundle(path: str, checks: list[Check]) -> list[str]:
    """Write the archive, whole or not at all; what could not be looked at, a line each. Raises OSError."""
    mounts = running.all_mounts()
    settings = {each.runtime_dir: Settings.of(each.runtime_dir) for each in mounts}
    pids = {each: _processes(each) for each in mounts}
    known = [one for one in settings.values() if one is not None]
    scrubber = Scrubber(known_secrets(known, (pid for each in pids.values() for pid in each)))
    missing: list[str] = []
    unfinished = f"{path}.partial"
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:

            def add(name: str, text: str) -> None:
                data = scrubber.clean(text).encode(errors="replace")
                entry = tarfile.TarInfo(f"dsfs-bundle/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(data))

            def look(name: str, see: Callable[[], str]) -> bool:
                try:
                    add(name, see())
                except (OSError, ValueError) as error:
                    missing.append(f"{name}: {error}")
                    return False
                return True

            add("README", _README)
            add("doctor.json", json.dumps([check.as_dict() for check in checks], indent=2))
            look("versions.txt", _versions)
            look("mountinfo.txt", _fuse_mounts)
            look("connections.txt", _connections)
            for source in _MACHINE_FILES:
                look(f"machine/{os.path.basename(source)}", partial(_text, source))
            for each in mounts:
                name = os.path.basename(each.runtime_dir)
                add(f"{name}/mount.json", json.dumps({**asdict(each), "pids": pids[each]}, indent=2))
                for file_name, request in (("status.json", "/api/v1/status"), ("metrics.txt", "/metrics")):
                    if not look(f"{name}/{file_name}", partial(_ask, each.control_socket, request)):
                        break  # who does not answer the one is not asked for the other
                look(f"{name}/server.log", partial(_tail, f"{each.runtime_dir}/server.log"))
                chosen = settings[each.runtime_dir]
                if chosen is not None:
                    add(f"{name}/settings.json", json.dumps(asdict(_without_options(chosen)), indent=2))
                    look(f"{name}/disk.txt", partial(_disk, chosen.cache_dir))
                for pid in pids[each]:
                    look(f"{name}/process-{pid}.txt", partial(_process, pid))
            add("missing.txt", "".join(f"{line}\n" for line in missing))
        os.rename(unfinished, path)
    except BaseException:  # ^C too leaves no half of a bundle
        os.unlink(unfinished)
        raise
    return missing


def _without_options(settings: Settings) -> Settings:
    """HTTP sends options that it does not know as headers, so their values are kept only where the name is harmless."""
    options = {key: "***" if is_secret_name(key) else value for key, value in settings.source_options.items()}
    return replace(settings, source_options=options)


def _processes(each: running.Running) -> list[int]:
    """The keeper and what it started, its server among them."""
    found = [each.keeper_pid] if each.alive and each.keeper_pid else []
    for pid in found:
        try:
            found += [int(child) for child in _text(f"/proc/{pid}/task/{pid}/children").split()]
        except OSError:
            continue
    return found


def _ask(control_socket: str, path: str) -> str:
    """The body of an answer, from a server that may be dead, or alive and not answering."""
    deadline_s = time.monotonic() + _ANSWER_S
    answer = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_ANSWER_S)
        sock.connect(control_socket)
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        while piece := sock.recv(1 << 16):
            answer += piece
            if time.monotonic() > deadline_s or len(answer) > _LARGEST_ANSWER_BYTES:
                raise TimeoutError(f"{path}: no end of it within {_ANSWER_S:g} s")
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].decode(errors="replace")
    if " 200 " not in status:
        raise ValueError(f"{path}: {status or 'no answer'}")
    return body.decode(errors="replace")


def _tail(path: str) -> str:
    """The last lines of a log; the first of them whole."""
    with open(path, "rb") as file:
        start = max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES)
        file.seek(start)
        text = file.read(_LOG_BYTES).decode(errors="replace")
    return text.partition("\n")[2] if start else text


def _versions() -> str:
    packages = sorted(f"{each.metadata['Name']} {each.version}" for each in distributions())
    return "\n".join((f"python {sys.version}", " ".join(platform.uname()), "", *packages)) + "\n"


def _fuse_mounts() -> str:
    """Only FUSE's: the options of other file systems may name credentials, and are none of ours."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
        return "".join(line for line in table if " - fuse" in line)


def _connections() -> str:
    lines = [] if _names(_CONNECTIONS) else [f"{_CONNECTIONS}: empty (mount -t fusectl none {_CONNECTIONS})"]
    for place in (_SYSCTLS, *sorted(f"{_CONNECTIONS}/{name}" for name in _names(_CONNECTIONS))):
        for name in _names(place):
            if name != "abort":
                try:
                    lines.append(f"{place}/{name} {_text(f'{place}/{name}').strip()}")
                except OSError as error:
                    lines.append(f"{place}/{name} {error.strerror}")
    return "\n".join(lines) + "\n"


def _names(directory: str) -> list[str]:
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def _disk(place: str) -> str:
    disk = os.statvfs(place)
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    return f"{place}: {free} of {total} bytes free, {disk.f_favail} of {disk.f_files} inodes free\n"


def _process(pid: int) -> str:
    """Where it is and what it has; never its environment."""
    return "\n".join(_process_lines(pid)) + "\n"


def _process_lines(pid: int) -> Iterator[str]:
    yield _text(f"/proc/{pid}/cmdline").replace("\0", " ")
    yield f"{len(os.listdir(f'/proc/{pid}/fd'))} descriptors"
    for name in _PROCESS_FILES:
        try:
            text = _fuse_lines(pid) if name == "mountinfo" else _text(f"/proc/{pid}/{name}")
        except OSError as error:
            text = str(error.strerror)
        yield f"--- {name}\n{text}"
    for thread in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
        place = f"/proc/{pid}/task/{thread}"
        yield f"thread {thread} {_text(f'{place}/comm').strip()} {_text(f'{place}/wchan').strip()}"


def _fuse_lines(pid: int) -> str:
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as table:
        return "".join(line for line in table if " - fuse" in line)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
