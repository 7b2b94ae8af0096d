"""Whether a dataset may be given cached bytes: the source has accepted its own credentials, and not just another's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from dsfs.errors import SourceError, SourceRefused
from dsfs.sources.base import Buffer


class Entitlement:
    """Of one dataset, with the credentials of now. File side only.

    What the cache holds, or has on its way, may have been asked for by another dataset of the same source, with other
    credentials. Before the first such byte is handed out, the source must have given a byte to this dataset's own:
    in a fetch that was wanted anyway, in an earlier life (``recall``), or in a request for one byte. After that,
    ``proven`` is all that a read looks at. Other credentials begin anew.
    """

    def __init__(self) -> None:
        self.proven = False
        self.epoch = 0
        """Raised when the credentials change: what was asked before says nothing about the ones of now."""
        self.recall: Callable[[], Awaitable[bool]] = _nothing_is_known
        """Whether these credentials were accepted once, as is written down."""
        self.remember: Callable[[], None] = _nobody_remembers
        """Have it written down, soon."""
        self.forget: Callable[[], Awaitable[None]] = _nothing_to_forget
        """Have it struck out: they were accepted once, and are not any more."""
        self._asking = trio.Lock()

    def begin_anew(self) -> None:
        """The dataset reads with other credentials from now on, or with what may be others."""
        self.proven = False
        self.epoch += 1

    def note(self, epoch: int) -> None:
        """The source gave bytes to what was asked in that epoch."""
        if epoch == self.epoch and not self.proven:
            self.proven = True
            self.remember()

    async def prove(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Return once it is proven. ``ask`` has the source give a byte; what it raises is what the reader gets."""
        async with self._asking:
            while not self.proven:
                epoch = self.epoch
                if await self.recall():
                    self.proven = epoch == self.epoch
                else:
                    await ask()
                    self.note(epoch)

    async def confirm(self, ask: Callable[[], Awaitable[None]]) -> bool:
        """Ask again what was proven; False: the source refuses now, and nothing cached is handed out until it gives a
        byte again. A source that cannot be asked, or has other trouble, takes nothing away."""
        epoch = self.epoch
        try:
            await ask()
        except SourceRefused:
            if epoch == self.epoch and self.proven:
                await self.forget()  # first: who asks for a proof after the next line must not find this one
                if epoch == self.epoch:
                    self.begin_anew()
            return False
        except SourceError:
            return True
        return True


class Unread:
    """A sink for bytes that nobody wants: that they came is the answer."""

    async def write(self, offset: int, data: Buffer) -> None:
        """See ``Sink``."""


async def _nothing_is_known() -> bool:
    return False


async def _nothing_to_forget() -> None:
    return


def _nobody_remembers() -> None:
    return
