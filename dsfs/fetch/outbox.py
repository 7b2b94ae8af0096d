"""What is to be sent to a courier: errands, several in a message, and the question whether it is well."""

from __future__ import annotations

import socket
from typing import Final

import trio

from dsfs.fetch.errand import LARGEST_MESSAGE, Errand, packed
from dsfs.ranges import KiB

_ERRANDS_AT_ONCE: Final = 32
_BESIDES: Final = 2 * KiB  # of an errand, beside its request and path


class Outbox:
    """File side only."""

    def __init__(self) -> None:
        self._errands: list[Errand] = []
        self._asks = False
        self._lot = trio.lowlevel.ParkingLot()

    def put(self, errand: Errand) -> None:
        self._errands.append(errand)
        self._lot.unpark()

    def ask(self) -> None:
        """Whether the courier is well: a message without errands."""
        self._asks = True
        self._lot.unpark()

    def clear(self) -> None:
        self._errands.clear()
        self._asks = False

    async def post(self, link: socket.socket) -> None:
        """Send what was put in since: one message for all that readers asked for in one round of the loop. Until the
        courier is gone."""
        while True:
            while self._errands or self._asks:
                raw = packed([tuple(errand) for errand in self._next_message()])
                while True:
                    try:
                        link.send(raw)
                        break
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(link)
                    except ConnectionError:
                        return  # who listens sees that too
            await self._lot.park()

    def _next_message(self) -> list[Errand]:
        """As many errands as it holds; none to ask whether the courier is well."""
        some: list[Errand] = []
        if self._asks:
            self._asks = False
            return some
        size = 0
        for errand in self._errands[:_ERRANDS_AT_ONCE]:
            size += len(errand.request) + len(errand.path) + _BESIDES
            if some and size > LARGEST_MESSAGE:
                break
            some.append(errand)
        del self._errands[: len(some)]
        return some
