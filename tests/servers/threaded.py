"""A web server in threads of this process, on loopback: its start and end, and how one answer is sent."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.servers.process import HOST


def send(to: BaseHTTPRequestHandler, status: int, data: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
    """One whole answer; a HEAD gets it without its body."""
    to.send_response(status)
    for key, value in (headers or {}).items():
        to.send_header(key, value)
    to.send_header("Content-Length", str(len(data)))
    to.end_headers()
    if to.command != "HEAD":
        to.wfile.write(data)


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Its port."""
    with ThreadingHTTPServer((HOST, 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
