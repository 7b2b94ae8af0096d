"""Where servers are, for who must not wait: what is not known yet is looked up in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Final

_LOOKED_UP_S: Final = 30.0  # then it is used on, and looked up again

Server = tuple[str, int]
"""Host and port."""
Address = tuple[int, tuple[str | int, ...]]
"""Family, and what connect(2) takes."""


class Addresses:
    """For one thread, beside those that it starts."""

    def __init__(self) -> None:
        self._known: dict[Server, tuple[float, Address]] = {}
        self._asking: set[Server] = set()

    def find(self, server: Server) -> Address | None:
        """None: not known yet."""
        host, port = server
        for family, place in ((socket.AF_INET, (host, port)), (socket.AF_INET6, (host, port, 0, 0))):
            with contextlib.suppress(OSError, ValueError):
                socket.inet_pton(family, host)
                return family, place
        known = self._known.get(server)
        if (known is None or known[0] < time.monotonic() - _LOOKED_UP_S) and server not in self._asking:
            self._asking.add(server)
            threading.Thread(target=self._look_up, args=(server,), daemon=True).start()
        return None if known is None else known[1]

    def forget(self, server: Server) -> None:
        """It was not there."""
        self._known.pop(server, None)

    def _look_up(self, server: Server) -> None:
        try:
            family, _kind, _protocol, _name, place = socket.getaddrinfo(*server, type=socket.SOCK_STREAM)[0]
            self._known[server] = time.monotonic(), (family, place)  # type: ignore[assignment]  # two kinds of address
        except (OSError, UnicodeError):
            return  # one that was known is used on, until nothing is there
        finally:
            self._asking.discard(server)
