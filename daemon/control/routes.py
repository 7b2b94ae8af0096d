"""The HTTP interface: what may be asked, and what is answered. JSON in the schemas of DESIGN section 7."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import cache, partial
from importlib.resources import files
from typing import Any

import structlog
import trio
from aiohttp import web
from prometheus_client import exposition

from daemon.control.stats import snapshot
from daemon.node import Node
from dsfs.bridge import Bridge
from dsfs.errors import ConfigError, DsfsError
from dsfs.ranges import MiB

log = structlog.get_logger()

_LARGEST_BODY_BYTES = 64 * MiB  # manifests of some ten thousand datasets

_PAGE_HEADERS = {  # it shows names and messages from outside, so nothing from elsewhere runs in it or hears of it
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def public_app(node: Node, bridge: Bridge) -> web.Application:
    """Read-only: metrics, health, status."""
    routes = Routes(node, bridge)
    middlewares = [errors_as_json, routes.once_complete]
    app = web.Application(middlewares=middlewares, client_max_size=_LARGEST_BODY_BYTES)
    app.router.add_get("/", routes.page)
    app.router.add_get("/metrics", routes.metrics)
    app.router.add_get("/livez", routes.livez)
    app.router.add_get("/healthz", routes.healthz)
    app.router.add_get("/api/v1/status", routes.status)
    app.router.add_get("/api/v1/stats", routes.stats)
    return app


def private_app(node: Node, bridge: Bridge) -> web.Application:
    """All of it; on the unix socket."""
    routes = Routes(node, bridge)
    app = public_app(node, bridge)
    app.router.add_get("/api/v1/datasets/{selector:.+}", routes.show)
    app.router.add_get("/api/v1/pins", routes.pins)
    app.router.add_post("/api/v1/evict", routes.evict)
    app.router.add_post("/api/v1/pin", routes.pin)
    app.router.add_post("/api/v1/unpin", routes.unpin)
    app.router.add_post("/api/v1/verify", routes.verify)
    app.router.add_post("/api/v1/resync", routes.resync)
    app.router.add_post("/api/v1/apply", routes.apply)
    app.router.add_post("/api/v1/delete", routes.delete)
    app.router.add_post("/api/v1/warm", routes.warm)
    app.router.add_get("/api/v1/warm", routes.warms)
    app.router.add_get("/api/v1/warm/{id}", routes.warm_progress)
    app.router.add_get("/api/v1/warm/{id}/next", routes.warm_next)
    app.router.add_delete("/api/v1/warm/{id}", routes.warm_cancel)
    app.router.add_post("/api/v1/clone", routes.clone)
    app.router.add_post("/api/v1/credential", routes.set_credential)
    app.router.add_post("/api/v1/checksums", routes.checksums)
    app.router.add_post("/api/v1/verify-file", routes.verify_file)
    app.router.add_post("/api/v1/hint", routes.hint)
    app.router.add_get("/api/v1/hint/{selector:.+}", routes.hint_progress)
    return app


@cache
def _page() -> bytes:
    return files("daemon.control").joinpath("web/index.html").read_bytes()


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """An expected failure is one line for the person who asked."""
    try:
        return await handler(request)
    except DsfsError as error:
        return web.json_response({"error": str(error)}, status=400)
    except web.HTTPException as error:
        return web.json_response({"error": f"{request.path}: {error.reason}"}, status=error.status)
    except Exception as error:
        log.exception("request to the control interface failed", path=request.path)
        reason = f"{request.path}: {type(error).__name__} in the daemon (see its log)"
        return web.json_response({"error": reason}, status=500)


class Routes:
    def __init__(self, node: Node, bridge: Bridge) -> None:
        self._node = node
        self._bridge = bridge

    @web.middleware
    async def once_complete(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Who asks a server that is just starting hears of all datasets, not of those that it has come to."""
        if request.path.startswith("/api/"):
            await self._bridge.await_on_file_side(self._node.once_complete)
        return await handler(request)

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(body=_page(), content_type="text/html", charset="utf-8", headers=_PAGE_HEADERS)

    async def metrics(self, request: web.Request) -> web.Response:
        await self._bridge.await_on_file_side(self._node.status.set_gauges)
        encoder, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        from prometheus_client import REGISTRY

        return web.Response(body=encoder(REGISTRY), headers={"Content-Type": content_type})

    async def livez(self, request: web.Request) -> web.Response:
        """Both loops turn. Says nothing about disks and origins, which no restart would mend."""
        await self._bridge.await_on_file_side(trio.lowlevel.checkpoint)
        return web.json_response({"alive": True})

    async def healthz(self, request: web.Request) -> web.Response:
        status = await self._bridge.await_on_file_side(self._node.status.mount)
        return web.json_response({"healthy": status["healthy"]}, status=200 if status["healthy"] else 503)

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(await self._bridge.await_on_file_side(self._node.status.mount))

    async def stats(self, request: web.Request) -> web.Response:
        await self._bridge.await_on_file_side(self._node.status.set_gauges)
        return web.json_response(snapshot(self._node.status.mountpoint))

    async def show(self, request: web.Request) -> web.Response:
        return web.json_response(await self._bridge.await_on_file_side(self._node.show, request.match_info["selector"]))

    async def evict(self, request: web.Request) -> web.Response:
        return await self._selected(request, self._node.evict)

    async def pins(self, request: web.Request) -> web.Response:
        return web.json_response(await self._bridge.await_on_file_side(self._node.pins))

    async def pin(self, request: web.Request) -> web.Response:
        """{"selector"}, and "warm": true where that is asked for next."""
        to_warm = (await request.json()).get("warm")
        return await self._selected(request, self._node.pin_to_warm if to_warm else self._node.pin)

    async def unpin(self, request: web.Request) -> web.Response:
        return await self._selected(request, self._node.unpin)

    async def resync(self, request: web.Request) -> web.Response:
        return await self._selected(request, self._node.resync)

    async def delete(self, request: web.Request) -> web.Response:
        return await self._selected(request, self._node.delete)

    async def _selected(self, request: web.Request, act: Callable[[str], Awaitable[object]]) -> web.Response:
        body: dict[str, Any] = await request.json()
        return web.json_response(await self._bridge.await_on_file_side(act, str(body.get("selector", ""))))

    async def apply(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        return web.json_response(
            await self._bridge.await_on_file_side(self._node.apply, str(body.get("manifests", "")))
        )

    async def clone(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        selector, new = str(body.get("selector", "")), str(body.get("new", ""))
        return web.json_response(await self._bridge.await_on_file_side(self._node.clone, selector, new))

    async def set_credential(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        selector, values = str(body.get("selector", "")), body.get("values")
        return web.json_response(await self._bridge.await_on_file_side(self._node.set_credential, selector, values))

    async def checksums(self, request: web.Request) -> web.Response:
        """{"selector", "paths"} → {"block_bytes", "checksums", "unreadable"}: for each path a list, crc32c or null, of
        its blocks; and those of the paths that cannot be read from the source."""
        body: dict[str, Any] = await request.json()
        selector, paths = str(body.get("selector", "")), [str(path) for path in body.get("paths", ())]
        return web.json_response(await self._bridge.await_on_file_side(self._node.checksums, selector, paths))

    async def verify_file(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        selector, path = str(body.get("selector", "")), str(body.get("path", ""))
        return web.json_response(await self._bridge.await_on_file_side(self._node.verify_file, selector, path))

    async def verify(self, request: web.Request) -> web.Response:
        return web.json_response(asdict(await self._bridge.await_on_file_side(self._node.verify)))

    async def warm(self, request: web.Request) -> web.Response:
        """Begin to warm: {"selector", "bytes_per_s": number or null} → a warm-up, as ``Job.as_json`` has it."""
        body: dict[str, Any] = await request.json()
        rate = body.get("bytes_per_s")
        if rate is not None and not (isinstance(rate, int | float) and rate > 0):
            raise ConfigError(f"bytes_per_s: {rate!r} is not a number of bytes")
        begin = partial(self._node.warm, str(body.get("selector", "")), rate)
        return web.json_response(await self._bridge.await_on_file_side(begin))

    async def warms(self, request: web.Request) -> web.Response:
        return web.json_response({"warms": await self._bridge.on_file_side(self._node.warms)})

    async def warm_progress(self, request: web.Request) -> web.Response:
        return web.json_response(await self._bridge.on_file_side(self._node.warm_progress, request.match_info["id"]))

    async def warm_next(self, request: web.Request) -> web.Response:
        """As ``warm_progress``, in a moment: when it has ended, or there may be something new to show."""
        return web.json_response(await self._bridge.await_on_file_side(self._node.warm_next, request.match_info["id"]))

    async def warm_cancel(self, request: web.Request) -> web.Response:
        return web.json_response(
            await self._bridge.await_on_file_side(self._node.warm_cancel, request.match_info["id"])
        )

    async def hint(self, request: web.Request) -> web.Response:
        """{"selector", "paths": […], "last": bool}, and "id" to go on with an order → what ``Hint.as_json`` has."""
        body: dict[str, Any] = await request.json()
        paths = body.get("paths")
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ConfigError("paths: is not a list of paths")
        known = body.get("id")
        add = partial(self._node.hint, str(body.get("selector", "")), paths, known and str(known))
        return web.json_response(await self._bridge.await_on_file_side(partial(add, last=bool(body.get("last", True)))))

    async def hint_progress(self, request: web.Request) -> web.Response:
        return web.json_response(
            await self._bridge.await_on_file_side(self._node.hint_progress, request.match_info["selector"])
        )
