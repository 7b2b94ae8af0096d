"""A small WebHDFS: two namenodes and a datanode, each on a port of its own, over files in memory.

What is copied from Hadoop 3 is what a client can trip over: OPEN is a 307 to a datanode, with the user or with a token
that only the datanode takes; RemoteExceptions come under Hadoop's statuses (403 for every IOException, so for a standby
too); LISTSTATUS_BATCH gives pages; a file that is written anew is a new inode; times are whole milliseconds.
"""

from __future__ import annotations

import itertools
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from tests.servers.process import HOST

PAGE_NAMES = 3
BLOCK_TOKEN = "block-token-of-the-datanode"


@dataclass
class File:
    data: bytes
    inode: int
    mtime_ms: int


@dataclass
class Hdfs:
    """The file system and the switches of its servers. Everything may be changed while they run."""

    files: dict[str, File] = field(default_factory=dict)
    directories: dict[str, int] = field(default_factory=lambda: {"/": 1})
    unreadable: set[str] = field(default_factory=set)
    token: str | None = None  # when set, Kerberos: a delegation token or 401 Negotiate
    basic: str | None = None  # when set, the Authorization that a gateway wants
    standby: set[int] = field(default_factory=set)  # numbers of namenodes
    batches: bool = True
    failing: dict[int, tuple[int, dict[str, str]]] = field(default_factory=dict)  # namenode → status, headers
    dead_datanode: str | None = None  # host:port that OPEN names until it is excluded
    on_open: Callable[[], None] = lambda: None  # runs in the datanode, after the bytes were looked up
    shorten: int = 0  # bytes that a datanode leaves out at the end
    seen: list[tuple[str, str, dict[str, str], dict[str, str]]] = field(default_factory=list)
    inodes: Iterator[int] = field(default_factory=lambda: itertools.count(16386))

    def put(self, path: str, data: bytes) -> None:
        """Write anew: another inode, another time."""
        full = "/" + path.strip("/")
        parent = full.rpartition("/")[0]
        while parent:
            self.directories.setdefault(parent, next(self.inodes))
            parent = parent.rpartition("/")[0]
        self.files[full] = File(data, next(self.inodes), time.time_ns() // 10**6)

    def delete(self, path: str) -> None:
        del self.files["/" + path.strip("/")]


class Remote(Exception):
    """A RemoteException and the status it comes under."""

    def __init__(self, status: int, name: str, message: str = "") -> None:
        super().__init__(name)
        self.status, self.name, self.message = status, name, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hdfs: Hdfs
    number: int  # of the namenode; -1: the datanode
    datanode: str

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        path = unquote(parts.path.removeprefix("/webhdfs/v1")).rstrip("/") or "/"
        where = "datanode" if self.number < 0 else f"namenode{self.number}"
        self.hdfs.seen.append((where, path, query, dict(self.headers.items())))
        try:
            if self.number < 0:
                self._datanode(path, query)
            else:
                self._namenode(path, query)
        except Remote as error:
            body = {"RemoteException": {"exception": error.name, "message": error.message, "javaClassName": "x"}}
            negotiate = {"WWW-Authenticate": "Negotiate"} if error.name == "AuthenticationException" else {}
            self._answer(error.status, json.dumps(body).encode(), negotiate)

    def _namenode(self, path: str, query: dict[str, str]) -> None:
        hdfs = self.hdfs
        if self.number in hdfs.failing:
            status, headers = hdfs.failing[self.number]
            return self._answer(status, b"<html>broken</html>", headers)
        if hdfs.basic is not None and self.headers.get("Authorization") != hdfs.basic:
            return self._answer(401, b"<html>gateway</html>", {"WWW-Authenticate": 'Basic realm="x"'})
        if hdfs.token is not None and query.get("delegation") != hdfs.token:
            if "delegation" in query:
                raise Remote(403, "InvalidToken", f"token {query['delegation']} can't be found in cache")
            raise Remote(401, "AuthenticationException", "Authentication required")
        if self.number in hdfs.standby:
            raise Remote(403, "StandbyException", "Operation category READ is not supported in state standby")
        op = query.get("op", "").upper()
        if path in hdfs.unreadable:
            raise Remote(403, "AccessControlException", f"Permission denied: user={query.get('user.name')}\n at x")
        if op == "GETFILESTATUS":
            return self._json({"FileStatus": self._status(path, "")})
        if op == "LISTSTATUS" or (op == "LISTSTATUS_BATCH" and hdfs.batches):
            return self._list(path, query, op)
        if op == "OPEN":
            if path not in hdfs.files:
                self._status(path, "")
                raise Remote(404, "FileNotFoundException", f"Path is not a file: {path}")
            node = self.datanode
            if hdfs.dead_datanode and hdfs.dead_datanode not in query.get("excludedatanodes", ""):
                node = hdfs.dead_datanode
            sent = {key: query[key] for key in ("op", "offset", "length", "user.name") if key in query}
            if hdfs.token is not None:
                sent["delegation"] = BLOCK_TOKEN
            scheme = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
            location = f"{scheme}://{node}{urlsplit(self.path).path}?{urlencode(sent)}"
            return self._answer(307, b"", {"Location": location})
        raise Remote(400, "IllegalArgumentException", f'Invalid value for webhdfs parameter "op": {op}')

    def _list(self, path: str, query: dict[str, str], op: str) -> None:
        hdfs = self.hdfs
        status = self._status(path, "")
        if status["type"] == "FILE":
            entries, remaining = [status], 0
        else:
            inside = path.rstrip("/") + "/"
            names = sorted(p.removeprefix(inside) for p in [*hdfs.files, *hdfs.directories] if p.startswith(inside))
            names = [name for name in names if name and "/" not in name]
            if op == "LISTSTATUS_BATCH":
                names = [name for name in names if name > query.get("startAfter", "")]
            page = names[:PAGE_NAMES] if op == "LISTSTATUS_BATCH" else names
            entries = [self._status(inside + name, name) for name in page]
            remaining = len(names) - len(page)
        found = {"FileStatuses": {"FileStatus": entries}}
        batch = {"DirectoryListing": {"partialListing": found, "remainingEntries": remaining}}
        self._json(batch if op == "LISTSTATUS_BATCH" else found)

    def _status(self, path: str, suffix: str) -> dict[str, Any]:
        hdfs = self.hdfs
        common = {"pathSuffix": suffix, "owner": "hdfs", "group": "supergroup", "permission": "644", "accessTime": 0}
        if (found := hdfs.files.get(path)) is not None:
            kind = {"type": "FILE", "length": len(found.data), "replication": 3, "blockSize": 134217728}
            return {**common, **kind, "modificationTime": found.mtime_ms, "fileId": found.inode}
        if path in hdfs.directories:
            return {**common, "type": "DIRECTORY", "length": 0, "modificationTime": 1, "fileId": hdfs.directories[path]}
        if any(path.startswith(f"{file}/") for file in hdfs.files):
            raise Remote(403, "ParentNotDirectoryException", f"{path} (is not a directory)")
        raise Remote(404, "FileNotFoundException", f"File does not exist: {path}")

    def _datanode(self, path: str, query: dict[str, str]) -> None:
        hdfs = self.hdfs
        if hdfs.token is not None and query.get("delegation") != BLOCK_TOKEN:
            raise Remote(403, "InvalidToken")
        if hdfs.token is None and hdfs.basic is None and "user.name" not in query:
            raise Remote(401, "SecurityException", "no user")
        found = hdfs.files.get(path)
        if found is None:
            raise Remote(404, "FileNotFoundException", path)
        offset = int(query.get("offset", "0"))
        data = found.data[offset : offset + int(query.get("length", str(len(found.data))))]
        hdfs.on_open()
        data = data[: len(data) - hdfs.shorten]
        self._answer(200, data, {"Content-Type": "application/octet-stream"})

    def _json(self, body: object) -> None:
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hdfs: Hdfs, number: int, datanode: str, tls: ssl.SSLContext | None, port: int = 0) -> None:
        handler = type("Handler", (_Handler,), {"hdfs": hdfs, "number": number, "datanode": datanode})
        self._connections: list[Any] = []
        super().__init__((HOST, port), handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def get_request(self) -> Any:
        connection, address = super().get_request()
        self._connections.append(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client went away: tests do that

    def kill(self) -> None:
        """Nobody listens, and no connection lives, when this returns. May be called twice."""
        self.shutdown()
        self.server_close()
        for connection in self._connections:
            _shut(connection)
        self._connections.clear()
        self._thread.join()


def _shut(connection: Any) -> None:
    try:
        connection.shutdown(2)
    except OSError:
        pass  # it was closed already


class HdfsServer:
    """Namenodes 0 and 1 (1 is a standby at first) and a datanode of one ``Hdfs``."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.hdfs = Hdfs(standby={1})
        self._tls = tls
        self._datanode = _Listener(self.hdfs, -1, "", tls)
        self._name = f"{HOST}:{self._datanode.server_port}"
        self._namenodes = [_Listener(self.hdfs, number, self._name, tls) for number in range(2)]
        self.ports = [namenode.server_port for namenode in self._namenodes]

    @property
    def authority(self) -> str:
        return f"{HOST}:{self.ports[0]}"

    @property
    def both(self) -> str:
        return ",".join(f"{HOST}:{port}" for port in self.ports)

    def kill(self, *numbers: int) -> None:
        for number in numbers or range(len(self._namenodes)):
            self._namenodes[number].kill()

    def restart(self, *numbers: int) -> None:
        """On the ports they had."""
        for number in numbers or range(len(self._namenodes)):
            self._namenodes[number] = _Listener(self.hdfs, number, self._name, self._tls, self.ports[number])

    def close(self) -> None:
        self.kill()
        self._datanode.kill()


@contextmanager
def hdfs_server(tls: ssl.SSLContext | None = None) -> Iterator[HdfsServer]:
    server = HdfsServer(tls)
    try:
        yield server
    finally:
        server.close()
