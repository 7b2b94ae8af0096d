"""A web server as Python's own is: an answer a connection, a short backlog, and an index that tells no sizes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dsfs.sources.http_client import AT_ONCE_IF_CLOSING
from tests.mounts import Mounts, eventually
from tests.resilience.conftest import make_tree
from tests.servers.process import HOST


class _Server(ThreadingHTTPServer):
    """Counts how much it is asked at once. The path that is ``refused`` it forbids."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__((HOST, 0), partial(_Handler, directory=str(root)))
        self.lock = threading.Lock()
        self.at_once = self.most = 0
        self.refused = ""


class _Handler(SimpleHTTPRequestHandler):
    server: _Server

    def send_head(self) -> Any:
        """Of a GET and of a HEAD. Counted as under way until a moment before, so no answer that was read is."""
        server = self.server
        with server.lock:
            server.at_once += 1
            server.most = max(server.most, server.at_once)
        time.sleep(0.003)
        with server.lock:
            server.at_once -= 1
        if self.path == server.refused:
            self.send_error(403)
            return None
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "source", files=120, large_mib=0)


@pytest.fixture
def server(source: Path) -> Iterator[_Server]:
    with _Server(source) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def files_of(root: Path) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())


def test_it_gets_few_connections_at_once(mounts: Mounts, server: _Server, source: Path) -> None:
    mount = mounts.mount(f"http://{HOST}:{server.server_port}/")
    files = files_of(source)
    with ThreadPoolExecutor(16) as pool:
        for path, data in zip(files, pool.map(lambda path: (mount.root / path).read_bytes(), files), strict=True):
            assert data == (source / path).read_bytes()
    mount.wait_phase("READY")
    assert server.most <= 2 * AT_ONCE_IF_CLOSING  # names and bytes


@pytest.mark.parametrize("session", ["direct", "pyfuse3"])
def test_a_name_that_is_refused_keeps_no_other(mounts: Mounts, server: _Server, source: Path, session: str) -> None:
    files = files_of(source)
    refused = files[len(files) // 2]
    server.refused = f"/{refused}"
    mount = mounts.mount(f"http://{HOST}:{server.server_port}/", session=session)
    assert sorted(os.listdir(mount.root / refused.parent)) == sorted(os.listdir(source / refused.parent))
    for path in files:
        if path == refused:
            with pytest.raises(PermissionError):
                (mount.root / path).read_bytes()
        else:
            assert (mount.root / path).stat().st_size == (source / path).stat().st_size
    mount.wait_phase("READY")
    message = mount.dataset()["message"]
    assert "1 name is refused by the source" in message, "it says that the listing is not whole"
    assert "403" in message
    with pytest.raises(PermissionError):
        (mount.root / refused).read_bytes()
    server.refused = ""
    eventually(lambda: os.access(mount.root / refused, os.R_OK), 120, "who looks has it listed anew")
    assert (mount.root / refused).read_bytes() == (source / refused).read_bytes()
    assert mount.dataset()["message"] == ""
