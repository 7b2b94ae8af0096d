"""The process that fetches small files: it dies, its server dies, its reader is killed; nobody else notices."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounts import Mount, Mounts, courier_of, eventually
from tests.resilience.conftest import DIRECT, mount_path
from tests.servers import hostile as web

NAMES = [f"f{number * 23 % 60:02}" for number in range(60)]  # far apart: none is brought for the one before it


def serve(server: web.Hostile) -> dict[str, bytes]:
    """A directory of small files, and what is in them."""
    files = {name: random.Random(name).randbytes(random.Random(name).randrange(1, 200_000)) for name in NAMES}
    links = "".join(f'<a href="{name}">{name}</a>' for name in files)
    server.files |= {f"/data/{name}": data for name, data in files.items()}
    server.files["/data/"] = f"<h1>Index of /</h1>{links}".encode()
    server.always("/data/", lambda _asked, _data, answer: answer.with_headers(Content_Type="text/html"))
    return files


@contextmanager
def mounted(mounts: Mounts, path: str) -> Iterator[tuple[web.Hostile, dict[str, bytes], Mount]]:
    """The server, its files, and where they are shown."""
    with web.hostile() as server:
        files = serve(server)
        mount = mount_path(mounts, path, f"{server.url}data/", type="HTTP")
        mount.wait_phase("READY")
        yield server, files, mount


def with_courier(mount: Mount, other_than: int | None = None) -> int:
    """Once the server has one that is not this one; its pid."""

    def there() -> int | None:
        found = courier_of(mount.server_pid)
        return None if found == other_than else found

    pid: int = eventually(there, 20, "the server has a courier")
    return pid


def is_gone(pid: int) -> bool:
    try:
        return b"daemon.courier" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


@pytest.mark.parametrize("path", DIRECT)
def test_files_come_by_courier_and_whoever_is_killed_takes_nothing_along(mounts: Mounts, path: str) -> None:
    with mounted(mounts, path) as (server, files, mount):
        mount.expect_log("the courier for small files ended|kernel repeats no requests")
        waiting = iter(NAMES)

        def read(count: int) -> None:
            for _ in range(count):
                name = next(waiting)
                assert (mount.root / name).read_bytes() == files[name], name

        read(1)
        courier = with_courier(mount)

        def is_used() -> bool:
            time.sleep(0.4)  # it may be on its way to saying that it is ready, and there are so many names
            read(1)
            return mount.sum_of("dsfs_courier_files_total", outcome="stored") > 0

        eventually(is_used, 12, "it is used")
        assert server.url.encode() not in Path(f"/proc/{courier}/cmdline").read_bytes()

        os.kill(courier, signal.SIGKILL)
        read(5)
        second = with_courier(mount, courier)
        read(5)

        mount.kill_server()
        read(5)
        eventually(lambda: is_gone(second), 10, "a courier ends with its server")
        third = with_courier(mount, second)
        read(5)
        assert mount.unmount().returncode == 0
        eventually(lambda: is_gone(third), 10, "a courier ends with its server")


@pytest.mark.parametrize("path", DIRECT)
def test_a_reader_that_is_killed_while_it_waits_is_let_go(mounts: Mounts, path: str) -> None:
    with mounted(mounts, path) as (server, files, mount):
        assert (mount.root / NAMES[0]).read_bytes() == files[NAMES[0]]
        with_courier(mount)
        stored = mount.sum_of("dsfs_courier_files_total", outcome="stored")
        for name in NAMES[1:30]:  # until it says that it is ready
            time.sleep(0.2)
            if mount.sum_of("dsfs_courier_files_total", outcome="stored") > stored:
                break
            assert (mount.root / name).read_bytes() == files[name]
        name = NAMES[40]
        gate = server.gate(f"/data/{name}", after_bytes=0)
        code = f"open({str(mount.root / name)!r}, 'rb').read()"
        with subprocess.Popen([sys.executable, "-c", code]) as reader:
            assert gate.reached.wait(20)
            reader.send_signal(signal.SIGKILL)
            assert reader.wait(10) == -signal.SIGKILL
        gate.open()
        assert (mount.root / name).read_bytes() == files[name]
        assert (mount.root / NAMES[41]).read_bytes() == files[NAMES[41]]


@pytest.mark.parametrize("path", DIRECT)
def test_an_error_of_the_origin_is_the_readers_and_passes(mounts: Mounts, path: str) -> None:
    with mounted(mounts, path) as (server, files, mount):
        mount.expect_log("fetch failed|request failed")
        for name in NAMES[:5]:
            assert (mount.root / name).read_bytes() == files[name]
        name = NAMES[10]
        server.always(f"/data/{name}", web.status(403))
        with pytest.raises(PermissionError):
            (mount.root / name).read_bytes()
        server.always(f"/data/{name}", lambda _asked, _data, answer: answer)
        assert (mount.root / name).read_bytes() == files[name]
