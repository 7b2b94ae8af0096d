"""Starts the HTTP servers of one mount, on the network side."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import trio

from daemon.node import Node
from daemon.settings import Settings, parse_address
from dsfs.bridge import Bridge
from dsfs.errors import MountError

log = structlog.get_logger()

_AGAIN_S = 2.0
Stop = Callable[[], Coroutine[Any, Any, None]]


async def control_interface(
    settings: Settings,
    node: Node,
    bridge: Bridge,
    *,
    patient: bool,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. The unix socket is the daemon's user's alone and may change things; TCP only shows.

    ``patient``: an address that another program has is asked for again and again, behind. Else raises MountError.
    """
    stops = [await bridge.call(_listen_to_owner, settings, node, bridge)]
    try:
        if settings.http is not None and not patient:
            stops.append(await bridge.call(_listen_to_all, settings.http, node, bridge))
        task_status.started()
        if settings.http is not None and patient:
            stops.append(await _at_last(settings.http, node, bridge))
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            for stop in stops:
                await bridge.call(stop)


async def _listen_to_owner(settings: Settings, node: Node, bridge: Bridge) -> Stop:
    from aiohttp import web

    from daemon.control.routes import private_app

    path = f"{settings.runtime_dir}/control.sock"  # one that a dead server left is replaced
    private = web.AppRunner(private_app(node, bridge), access_log=None)
    await private.setup()
    await web.UnixSite(private, path).start()
    os.chmod(path, 0o600)
    return private.cleanup


async def _listen_to_all(http: str, node: Node, bridge: Bridge) -> Stop:
    """Raises MountError."""
    from aiohttp import web

    from daemon.control.routes import public_app

    host, port = parse_address(http)
    public = web.AppRunner(public_app(node, bridge), access_log=None)
    await public.setup()
    try:
        site = web.TCPSite(public, host, port) if host else web.SockSite(public, _everywhere(port))
        await site.start()
    except OSError as error:
        await public.cleanup()
        raise MountError(f"--http {http}: {_reason(error)}") from error
    if port == 0:  # which one it became
        bound = public.addresses[0][1]
        node.status.http = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
    return public.cleanup


async def _at_last(http: str, node: Node, bridge: Bridge) -> Stop:
    said = False
    while True:
        try:
            return await bridge.call(_listen_to_all, http, node, bridge)
        except MountError as error:
            if not said:
                log.error("nobody can look at metrics until this address is free", reason=str(error))
            said = True
        await trio.sleep(_AGAIN_S)


def _everywhere(port: int) -> socket.socket:
    """One socket for IPv4 and IPv6, so that they have one port also where the system chooses it; for IPv4 alone where
    the other is switched off, as it is on many nodes."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    return socket.create_server(("", port))


def _reason(error: OSError) -> str:
    """Without the address, which asyncio puts into its text, and which is in ours; a name that is not found has errors
    of its own (EAI_NONAME)."""
    return str(error.strerror) if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
