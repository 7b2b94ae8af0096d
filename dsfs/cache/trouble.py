"""What a cache directory has refused, from then until it takes something again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import structlog

from dsfs import metrics

log = structlog.get_logger()

_EXPECTED = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EACCES}


class Trouble:
    """Said once per cause, and again when it changes."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.reason = ""

    def note(self, error: OSError) -> None:
        text = os.strerror(error.errno) if error.errno else str(error)
        if error.errno not in _EXPECTED:
            text = f"unexpected: {text}"
        if text != self.reason:
            log.warning("cache directory in trouble, reading on without it", cache=self._root, reason=text)
            self.reason = text
        metrics.CACHE_TROUBLE.set(1)

    def over(self) -> None:
        if self.reason:
            log.info("cache directory works again", cache=self._root)
            self.reason = ""
            metrics.CACHE_TROUBLE.set(0)

    def look_again(self, attempt: Callable[[], None]) -> None:
        """Whether it is over: all may be cached by now, and nothing be brought that the disk could take."""
        if not self.reason:
            return
        try:
            attempt()
        except OSError as error:
            self.note(error)
        else:
            self.over()
