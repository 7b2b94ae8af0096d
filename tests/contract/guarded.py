"""A web server that gives files to who shows a token that it knows, and says what came with which; its datasets."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.manifests import dataset
from tests.mounts import Mount, eventually
from tests.pages import drop_pages
from tests.servers import hostile as web

FILES = {
    "a.txt": b"first",
    "b.bin": random.Random(4).randbytes(300_000),
    "large": random.Random(5).randbytes(6_000_000),
}


class Guarded:
    """``may_list`` and ``may_read`` are tokens; a GET of a file is a read, all else is listing."""

    def __init__(self, server: web.Hostile) -> None:
        self.server = server
        self.url = f"{server.url}data/"
        self.may_list: set[str] = set()
        self.may_read: set[str] = set()
        links = "".join(f'<a href="{name}">{name}</a>' for name in FILES)
        server.files["/data/"] = f'<h1>Index of /data/</h1><a href="../">../</a>{links}'.encode()
        server.always("/data/", self._listing)
        for name, data in FILES.items():
            server.files[f"/data/{name}"] = data
            server.always(f"/data/{name}", self._file)

    def allow(self, *tokens: str) -> None:
        self.may_list.update(tokens)
        self.may_read.update(tokens)

    def reads(self) -> list[tuple[str, int]]:
        """(token, bytes that were asked for) of every GET of a file so far."""
        return [
            (_token(asked), asked.range[1] - asked.range[0] + 1 if asked.range else -1)
            for asked in self.server.asked
            if asked.method == "GET" and asked.path != "/data/"
        ]

    def _listing(self, asked: web.Asked, data: bytes, answer: web.Answer) -> web.Answer:
        answer = answer.with_headers(Content_Type="text/html")
        return answer if _token(asked) in self.may_list else web.Answer(403, {}, b"")

    def _file(self, asked: web.Asked, data: bytes, answer: web.Answer) -> web.Answer:
        allowed = self.may_list if asked.method == "HEAD" else self.may_read
        return answer if _token(asked) in allowed else web.Answer(403, {}, b"")


def _token(asked: web.Asked) -> str:
    return asked.headers.get("authorization", "").removeprefix("Bearer ")


@contextlib.contextmanager
def guarded() -> Iterator[Guarded]:
    with web.hostile() as server:
        yield Guarded(server)


def secret(namespace: str, name: str = "web", **values: str) -> dict[str, Any]:
    metadata: Mapping[str, str] = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}


def web_dataset(origin: Guarded, name: str, namespace: str, **spec: object) -> dict[str, object]:
    return dataset(name, origin.url, namespace, type="HTTP", **{"secretRef": "web", **spec})


def read_all(root: Path) -> None:
    for name, data in FILES.items():
        assert (root / name).read_bytes() == data, name


def errno_of(root: Path, name: str = "a.txt") -> int:
    """Of a read that the kernel has no pages for; 0 when it succeeds."""
    try:
        with open(root / name, "rb") as file:
            drop_pages(file.fileno())
            assert file.read() == FILES[name]
        return 0
    except OSError as error:
        return error.errno or -1


def wait_cached(mount: Mount, name: str) -> None:
    total = sum(map(len, FILES.values()))
    eventually(lambda: mount.dataset(name)["cached_bytes"] == total, 15, f"all of {name} is cached")
