"""Where the blocks of a large object are stored: its files are made while the source is asked for the first of them,
or, if somebody waits for its beginning, once that is here.

Making them takes as long as a near source takes to answer.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from dsfs.cache.allowance import SetAside
from dsfs.cache.blockmap import BlockMap


class Place:
    """``find`` opens or makes the object, on the file side; None: nowhere, the disk refuses. ``room`` is set aside for
    what is stored there."""

    def __init__(self, find: Callable[[], BlockMap | None], room: SetAside) -> None:
        self.room = room
        self._find = find
        self._made: Future[BlockMap | None] = Future()

    def make(self) -> None:
        """File side only. What goes wrong is raised by ``made``."""
        if self.is_made:
            return
        try:
            self._made.set_result(self._find())
        except Exception as error:
            self._made.set_exception(error)

    @property
    def is_made(self) -> bool:
        """Whether ``make`` was called."""
        return self._made.done()

    @property
    def refused(self) -> bool:
        """Whether it is known that there is none. Never waits, never raises."""
        return self.is_made and (self._made.exception() is not None or self._made.result() is None)

    def made(self) -> BlockMap | None:
        """The object. Any thread that is not the file side waits for ``make``, which has to be called."""
        return self._made.result()
