"""An answer that comes when something else is over, without a task that waits for it.

A task with its scope cost a quarter of what a cold small file cost the FUSE loop.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

Finished = bytes | memoryview | Coroutine[Any, Any, None]


class Later:
    """What a handler returns: ``when_over`` is where a call is left for when it is time, ``finish`` answers then, or
    says what has to be waited for after all."""

    __slots__ = ("_cancelled", "finish", "over", "when_over")

    def __init__(self, when_over: list[Callable[[], None]], finish: Callable[[], Finished]) -> None:
        self.when_over = when_over
        self.finish = finish
        self.over = False
        """Whether it is answered, or nobody is there to be answered."""
        self._cancelled: Callable[[], None] | None = None

    def begin(self, ended: Callable[[], None], cancelled: Callable[[], None]) -> None:
        """``ended`` is called once it is time, unless ``cancel`` was called before."""
        self._cancelled = cancelled

        def call() -> None:
            if not self.over:
                self.over = True
                ended()

        self.when_over.append(call)

    def cancel(self) -> None:
        """As of a scope: whoever waits wants out."""
        if not self.over and self._cancelled is not None:
            self.over = True
            self._cancelled()
