"""A server that speaks what data.world (API v0) and Nasdaq Data Link (API v3) document, as far as dsfs asks for it.

Made by hand: neither has an emulator. data.world: datasets, file_download (by redirect to a signed URL, with ranges),
sql as CSV. Nasdaq: the bulk export with its states, the zip behind a signed URL, a time series as CSV, QEA errors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers.archive_files import zip_of
from tests.servers.threaded import send, serving

TOKEN = "t0ken-of-mine"


@dataclass
class TablesServer:
    """``files`` of dataset me/data with their ``updated``, its ``sql`` tables; ``tables`` of ACME, ``series`` of DB."""

    url: str
    files: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    sql: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, bytes] = field(default_factory=dict)
    series: dict[str, bytes] = field(default_factory=dict)
    premium: set[str] = field(default_factory=set)  # tables that the key has no subscription for
    status: str = "fresh"  # of an export
    etags: bool = True  # whether files have them
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def asked_for(self, part: str) -> int:
        return sum(part in path for path, _ in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: TablesServer

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.state.asked.append((self.path, dict(self.headers)))
        url = urlsplit(self.path)
        api, _, rest = url.path.removeprefix("/").partition("/")
        if api == "signed":
            return self._signed(rest)
        if api == "v0":
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return send(self, 401, b'{"code": 401, "message": "Unauthorized"}')
            return self._data_world(rest, parse_qs(url.query))
        if self.headers.get("X-Api-Token") != TOKEN:
            return send(
                self, 400, b'{"quandl_error": {"code": "QEAx01", "message": "We could not recognize your API key"}}'
            )
        return self._nasdaq(rest.removeprefix("v3/"), parse_qs(url.query))

    def _data_world(self, path: str, query: Mapping[str, list[str]]) -> None:
        state = self.state
        if path == "datasets/me/data":
            files = [
                {"name": name, "sizeInBytes": len(data), "created": updated, "updated": updated}
                for name, (data, updated) in state.files.items()
            ]
            return self._json({"owner": "me", "id": "data", "title": "data", "files": files, "status": "LOADED"})
        if path.startswith("file_download/me/data/"):
            name = path.removeprefix("file_download/me/data/")
            if unquote(name) in state.files:
                return send(self, 302, b"", {"Location": f"{state.url}signed/file/{name}?sig=abc"})
        if path == "sql/me/data":
            table = re.fullmatch(r"SELECT \* FROM (\w+)", query["query"][0])
            if table is None or table[1] not in state.sql or self.headers.get("Accept") != "text/csv":
                return send(self, 400, b'{"code": 400}')
            return send(self, 200, state.sql[table[1]])
        return send(self, 404, b'{"code": 404}')

    def _nasdaq(self, path: str, query: Mapping[str, list[str]]) -> None:
        state = self.state
        if state.premium.intersection(re.split(r"[/.]", path)):
            return send(self, 403, b'{"quandl_error": {"code": "QEPx04"}}')
        if path.endswith("/metadata.json"):
            kind, _vendor, name, _ = path.split("/")
            there = name in (state.tables if kind == "datatables" else state.series)
            return send(self, 200 if there else 404, b"{}")
        kind, vendor, last = path.split("/")
        name, _, ending = last.rpartition(".")
        if (kind, vendor, ending) == ("datatables", "ACME", "json") and name in state.tables:
            assert query == {"qopts.export": ["true"]}
            link = None if state.status == "creating" else f"{state.url}signed/export/{name}?sig=abc"
            file = {"link": link, "status": state.status, "data_snapshot_time": "2026-01-01 00:00:00 UTC"}
            return self._json({"datatable_bulk_download": {"file": file, "datatable": {"last_refreshed_time": ""}}})
        if (kind, vendor, ending) == ("datasets", "DB", "csv") and name in state.series:
            return send(self, 200, state.series[name])
        return send(self, 404, b'{"quandl_error": {"code": "QECx02"}}')

    def _signed(self, path: str) -> None:
        # As a cloud's storage does: a signature and a header of another kind are one credential too many.
        if "Authorization" in self.headers or "X-Api-Token" in self.headers:
            return send(self, 400, b"one authentication only")
        kind, _, name = path.partition("/")
        if kind == "export":
            return send(self, 200, zip_of({f"ACME_{name}.csv": self.state.tables[name]}))
        data = self.state.files[unquote(name)][0]
        etag = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'} if self.state.etags else {}
        if self.headers.get("If-Match", etag.get("ETag")) != etag.get("ETag"):
            return send(self, 412, b"")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert asked is not None
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
        return send(self, 206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}", **etag})

    def _json(self, value: object) -> None:
        send(self, 200, json.dumps(value).encode())


@contextlib.contextmanager
def tables_server() -> Iterator[TablesServer]:
    handler = type("Handler", (_Handler,), {})
    with serving(handler) as port:
        # The API by its address and signed URLs by another name: two origins, as there.
        handler.state = state = TablesServer(f"http://localhost:{port}/")
        yield state
