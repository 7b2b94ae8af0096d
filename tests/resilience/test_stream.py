"""A real mount over a real server without ranges: the origin sends a large file about once, whoever reads what."""

from __future__ import annotations

import os
import random
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.mounts import HOST, Mounts
from tests.resilience.conftest import MIB, mount_path

SIZE = 40 * MIB + 77


class Counting(ThreadingHTTPServer):
    """Knows no ranges; counts the bytes of bodies that it could hand to the kernel, and breaks off if told."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__((HOST, 0), partial(_Handler, directory=str(root)))
        self.sent_bytes = 0
        self.break_at: list[int] = []
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who goes away is no news."""


class _Handler(SimpleHTTPRequestHandler):
    server: socketserver.BaseServer

    def log_message(self, format: str, *args: Any) -> None:
        return

    def copyfile(self, source: Any, outputfile: Any) -> None:
        assert isinstance(self.server, Counting)
        sent = 0
        while piece := source.read(64 << 10):
            outputfile.write(piece)
            sent += len(piece)
            with self.server.lock:
                self.server.sent_bytes += len(piece)
                if self.server.break_at and sent >= self.server.break_at[0]:
                    self.server.break_at.pop(0)
                    self.close_connection = True
                    return


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[tuple[Counting, bytes]]:
    root = tmp_path / "www"
    root.mkdir()
    data = random.Random(5).randbytes(SIZE)
    (root / "large").write_bytes(data)
    server = Counting(root)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server, data
    server.shutdown()
    thread.join()
    server.server_close()


def _mounted(mounts: Mounts, server: Counting) -> Path:
    mount = mount_path(mounts, "daemon", f"http://{HOST}:{server.server_address[1]}/", type="HTTP")
    mount.wait_phase("READY")
    return mount.root / "large"


def test_read_from_the_start(mounts: Mounts, origin: tuple[Counting, bytes]) -> None:
    server, data = origin
    assert _mounted(mounts, server).read_bytes() == data
    assert server.sent_bytes <= 1.1 * SIZE


def test_two_readers_at_random_places(mounts: Mounts, origin: tuple[Counting, bytes]) -> None:
    server, data = origin
    path = _mounted(mounts, server)

    def read(seed: int) -> None:
        places = list(range(0, SIZE, 2 * MIB))
        random.Random(seed).shuffle(places)
        with path.open("rb", buffering=0) as file:
            for at in places:
                assert os.pread(file.fileno(), 100_000, at) == data[at : at + 100_000]

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(read, (1, 2)))
    assert path.read_bytes() == data
    assert server.sent_bytes <= 1.1 * SIZE


def test_origin_breaks_off_in_the_middle(mounts: Mounts, origin: tuple[Counting, bytes]) -> None:
    server, data = origin
    path = _mounted(mounts, server)
    server.break_at = [25 * MIB]
    assert path.read_bytes() == data
    assert server.break_at == []
    assert server.sent_bytes <= 1.1 * SIZE + 26 * MIB
