"""A web server of this process that tells what it was asked, for what a real one does not show; and archives."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.servers.process import HOST
from tests.servers.threaded import send, serving


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class FilesServer:
    """Ranges, ETags (md5 of the content) and If-Match over files in memory."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    sent_bytes: int = 0
    lies: dict[str, bytes] = field(default_factory=dict)
    """Sent in the place of what ``files`` has there, with its ETag; as long as it."""
    username_password: str | None = None  # the Authorization header that is wanted

    def put(self, path: str, data: bytes) -> None:
        self.files[path] = data

    def asked_for(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == f"/{path}"]


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: FilesServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _answer(self) -> None:
        self.files.asked.append(Asked(self.command, self.path, dict(self.headers)))
        data = self.files.files.get(self.path.partition("?")[0].removeprefix("/"))
        wanted = self.files.username_password
        if wanted is not None and self.headers.get("Authorization") != wanted:
            return self._send(401)
        if data is None:
            return self._send(404)
        headers = {"ETag": etag(data)}
        if self.headers.get("If-Match", etag(data)) != etag(data):
            return self._send(412, headers)
        if self.headers.get("If-None-Match") == etag(data):
            return self._send(304, headers)
        data = self.files.lies.get(self.path.removeprefix("/"), data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, headers, data)
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
        if start >= len(data):
            return self._send(416, {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._send(206, headers, data[start:stop])

    def _send(self, status: int, headers: Mapping[str, str] | None = None, data: bytes = b"") -> None:
        if self.command == "GET":
            self.files.sent_bytes += len(data)
        send(self, status, data, headers)


@contextlib.contextmanager
def files_server() -> Iterator[FilesServer]:
    handler = type("Handler", (_Handler,), {})
    with serving(handler) as port:
        handler.files = files = FilesServer(f"http://{HOST}:{port}/")
        yield files


def zip_of(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return made.getvalue()


def tar_of(files: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()
