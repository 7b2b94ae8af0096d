"""Starts the HTTP servers of one mount, on the network side."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

import trio

from daemon.node import Node
from daemon.settings import Settings, parse_address
from dsfs.bridge import Bridge
from dsfs.errors import MountError


async def control_interface(
    settings: Settings,
    node: Node,
    bridge: Bridge,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. The unix socket is the daemon's user's alone and may change things; TCP only shows."""
    stop = await bridge.call(_listen, settings, node, bridge)
    task_status.started()
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            await bridge.call(stop)


async def _listen(settings: Settings, node: Node, bridge: Bridge) -> Callable[[], Coroutine[Any, Any, None]]:
    """Start; what stops it again."""
    from aiohttp import web

    from daemon.control.routes import private_app, public_app

    runners: list[web.AppRunner] = []
    path = f"{settings.runtime_dir}/control.sock"  # one that a dead server left is replaced
    private = web.AppRunner(private_app(node, bridge), access_log=None)
    await private.setup()
    await web.UnixSite(private, path).start()
    os.chmod(path, 0o600)
    runners.append(private)
    if settings.http is not None:
        host, port = parse_address(settings.http)
        public = web.AppRunner(public_app(node, bridge), access_log=None)
        await public.setup()
        try:
            await web.TCPSite(public, host, port).start()
        except OSError as error:
            await private.cleanup()
            raise MountError(f"--http {settings.http}: {os.strerror(error.errno or 0)}") from error
        runners.append(public)
        if port == 0:  # which one it became
            node.status.http = f"{host}:{public.addresses[0][1]}"

    async def stop() -> None:
        for runner in runners:
            await runner.cleanup()

    return stop
