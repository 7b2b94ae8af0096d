"""Trees, readers that never stop reading, and an origin that can be killed and started again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.keeping.silence import LONGEST, TICK_S
from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, eventually
from tests.servers.http_server import HttpServer, nginx
from tests.servers.process import Server

MIB = 1 << 20
DIRECT = ("passthrough", "openless", "daemon")
_REPLACED_S = (LONGEST + 1) * TICK_S + 20.0


@pytest.fixture
def none_is_cleared() -> Iterator[None]:
    """For who clears the mounts that nobody serves, which are those of all, and for who has one for a moment."""
    with open(f"{tempfile.gettempdir()}/dsfs-tests-clear.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_tree(root: Path, files: int = 40, large_mib: int = 12) -> Path:
    """Small files in a few directories, and a large one."""
    for number in range(files):
        path = root / f"d{number % 4}/f{number:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(number).randbytes(60_000 + number * 7919 % 250_000))
    (root / "large").write_bytes(random.Random(999).randbytes(large_mib * MIB + 77))
    return root


def mount_path(mounts: Mounts, path: str, uri: str | Path, *flags: str, type: str = "PVC", **how: Path) -> Mount:
    """One dataset, ``default/data``, on one read path."""
    session, spec = ("pyfuse3", {}) if path == "pyfuse3" else ("direct", {"readPath": path})
    manifest = write_manifests(mounts.directory / "manifest.yaml", dataset("data", uri, type=type, **spec))
    return mounts.mount("-f", manifest, *flags, session=session, dataset="default/data", **how)


# Compares what a mount shows with a reference, for ever: new opens, one open handle and one mapping. Counts its rounds
# in a file, ends when its input does. Whatever is wrong ends it with a traceback.
_READER = """
import mmap, os, random, select, struct, sys
root, reference, counter, seed = sys.argv[1:]
rng = random.Random(int(seed))
names = [os.path.relpath(os.path.join(d, f), reference) for d, _n, fs in os.walk(reference) for f in fs]
data = {}
for name in names:
    with open(os.path.join(reference, name), "rb") as file:
        data[name] = file.read()
count = os.open(counter, os.O_RDWR | os.O_CREAT)
held = os.open(os.path.join(root, "large"), os.O_RDONLY)
large = data["large"]
mapped = mmap.mmap(held, 0, prot=mmap.PROT_READ)
rounds = 0
while not select.select([0], [], [], 0)[0]:
    name = rng.choice(names)
    fd = os.open(os.path.join(root, name), os.O_RDONLY)
    assert os.fstat(fd).st_size == len(data[name]), name
    if rng.random() < 0.5:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    offset = rng.randrange(len(data[name])) if rng.random() < 0.5 else 0
    wanted = data[name][offset:offset + 500_000]
    got = b""
    while len(got) < len(wanted):
        piece = os.pread(fd, len(wanted) - len(got), offset + len(got))
        assert piece, "short read"
        got += piece
    assert got == wanted, (name, offset)
    os.close(fd)
    offset = rng.randrange(len(large) - 5000)
    assert os.pread(held, 5000, offset) == large[offset:offset + 5000], offset
    page = rng.randrange(len(large) // 4096) * 4096
    assert mapped[page:page + 4096] == large[page:page + 4096], page
    try:
        os.stat(os.path.join(root, "none" + str(rng.randrange(100))))
        raise AssertionError("there is no such file")
    except FileNotFoundError:
        pass
    assert os.listdir(os.path.join(root, "d1"))
    rounds += 1
    os.pwrite(count, struct.pack("=Q", rounds), 0)
"""


class Readers:
    """Processes that read until the end of the block, and must not have seen anything wrong."""

    def __init__(self, mount: Mount, reference: Path, directory: Path, number: int) -> None:
        self._counters = [directory / f"rounds{n}" for n in range(number)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", _READER, mount.root, reference, counter, str(seed)],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for seed, counter in enumerate(self._counters)
        ]

    def rounds(self) -> list[int]:
        return [
            int.from_bytes(counter.read_bytes(), sys.byteorder) if counter.exists() else 0 for counter in self._counters
        ]

    def wait_progress(self, within_s: float = 25.0) -> None:
        """Until each of them has finished two more rounds: one that began before this call, and a whole one."""
        before = self.rounds()

        def further() -> bool:
            if any(process.poll() is not None for process in self._processes):
                return True
            return all(now >= then + 2 for now, then in zip(self.rounds(), before, strict=True))

        eventually(further, within_s, "every reader goes on")
        self.check()

    def check(self) -> None:
        for process in self._processes:
            if process.poll() is not None:
                assert process.stderr is not None
                raise AssertionError(f"a reader ended: {process.stderr.read()}")

    def finish(self) -> None:
        for process in self._processes:
            _out, said = process.communicate(timeout=30)
            assert process.returncode == 0, said

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def readers(mount: Mount, reference: Path, directory: Path, number: int = 3) -> Iterator[Readers]:
    made = Readers(mount, reference, directory, number)
    try:
        yield made
        made.finish()
    finally:
        made.kill()


class Web:
    """nginx over a directory, on one port for its whole life, however often it is killed."""

    def __init__(self, server: HttpServer, directory: Path) -> None:
        self.url = server.url
        self.root = server.root
        self._first = server
        self._directory = directory
        self._again: Server | None = None

    def kill(self) -> None:
        (self._again or self._first).kill()

    def start_again(self) -> None:
        config = self._directory / "nginx.conf"
        argv = ["/usr/sbin/nginx", "-c", str(config), "-p", str(self._directory)]
        self._again = Server(argv, self._directory / "nginx-again.log", None)
        self._again.wait_for_port(int(self.url.rstrip("/").rpartition(":")[2]))


@pytest.fixture
def web_origin(tmp_path: Path) -> Iterator[Web]:
    directory = tmp_path / "nginx"
    directory.mkdir()
    with nginx(directory) as server:
        web = Web(server, directory)
        try:
            yield web
        finally:
            web.kill()


def errno_of_read(path: Path) -> int:
    """0 when it can be read."""
    try:
        with open(path, "rb") as file:
            while file.read(MIB):
                pass
        return 0
    except OSError as error:
        return error.errno or -1


def outlives_a_stop(mount: Mount, source: Path, warm: str, cold: str, listed: str) -> None:
    """What hangs with the server goes on: an open of what is cached, a cold read and a listing, each the first."""
    assert (mount.root / warm).read_bytes() == (source / warm).read_bytes()
    stopped = mount.server_pid
    os.kill(stopped, signal.SIGSTOP)
    started = time.monotonic()
    waiting = [  # processes: a thread that hangs would take the tests along
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for argv in (["cat", mount.root / cold], ["cat", mount.root / warm], ["ls", mount.root / listed])
    ]
    try:
        answers = [each.communicate(timeout=_REPLACED_S - (time.monotonic() - started)) for each in waiting]
    finally:
        for each in waiting:
            each.kill()
    assert [said for _out, said in answers] == [b""] * 3
    assert [out for out, _said in answers] == [
        (source / cold).read_bytes(),
        (source / warm).read_bytes(),
        b"".join(f"{name}\n".encode() for name in sorted(os.listdir(source / listed))),
    ]
    eventually(lambda: not Path(f"/proc/{stopped}").exists(), 10, "it is ended")
    assert mount.server_pid != stopped
