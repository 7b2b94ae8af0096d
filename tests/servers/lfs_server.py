"""A Git LFS server: the batch API (git-lfs docs/api/batch.md) and its objects, with ranges; counts what it is asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web

from tests.servers.process import HOST

MEDIA_TYPE = "application/vnd.git-lfs+json"


def pointer(content: bytes) -> bytes:
    """The file that stands in the repository for ``content``."""
    oid = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()


@dataclass
class LfsServer:
    """``authorization``: what a batch request must bring, if anything. Downloads need the header of their action."""

    port: int
    authorization: str | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    elsewhere: str | None = None
    ticket: str = "ticket-1"
    expires_in: int = 3600
    corrupt: bool = False
    refuse_with: int | None = None
    batch_status: int = 200

    def add(self, content: bytes) -> bytes:
        """Keep an object; its pointer."""
        self.objects[hashlib.sha256(content).hexdigest()] = content
        return pointer(content)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def batch(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization")
        self.seen.append((request.path, given))
        if self.refuse_with is not None:
            return web.Response(status=self.refuse_with, headers={"Retry-After": "7"})
        if self.authorization is not None and given != self.authorization:
            return web.json_response({"message": "no"}, status=401, headers={"LFS-Authenticate": 'Basic realm="lfs"'})
        assert request.headers["Content-Type"] == MEDIA_TYPE
        asked = json.loads(await request.text())
        assert asked["operation"] == "download"
        self.batches.append(len(asked["objects"]))
        answered = [self._entry(entry["oid"], entry["size"]) for entry in asked["objects"]]
        body = json.dumps({"transfer": "basic", "objects": answered})
        return web.Response(text=body, content_type=MEDIA_TYPE, status=self.batch_status)

    def _entry(self, oid: str, size: int) -> dict[str, object]:
        if len(self.objects.get(oid, b"")) != size:
            return {"oid": oid, "size": size, "error": {"code": 404, "message": "Object does not exist"}}
        href = f"{self.elsewhere or self.url}/objects/{oid}?signature=s3cr3t-signature"
        action = {"href": href, "header": {"X-Ticket": self.ticket}, "expires_in": self.expires_in}
        return {"oid": oid, "size": size, "authenticated": True, "actions": {"download": action}}

    async def download(self, request: web.Request) -> web.Response:
        self.seen.append((request.path, request.headers.get("Authorization")))
        if request.headers.get("X-Ticket") != self.ticket:
            return web.Response(status=403)
        content = self.objects[request.match_info["oid"]]
        if self.corrupt:
            content = bytes(len(content))
        wanted = request.http_range
        self.ranges.append(request.headers.get("Range"))
        if wanted.start is None:
            return web.Response(body=content)
        start, stop = wanted.start, min(wanted.stop or len(content), len(content))
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        return web.Response(status=206, body=content[start:stop], headers=headers)


@contextlib.asynccontextmanager
async def lfs_server(server: LfsServer) -> AsyncIterator[LfsServer]:
    """Answers at ``server.port`` in this event loop, whatever the path in front of ``objects/``."""
    app = web.Application()
    app.router.add_post("/{repository:.*}objects/batch", server.batch)
    app.router.add_get("/objects/{oid}", server.download)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, server.port).start()
        yield server
    finally:
        await runner.cleanup()
