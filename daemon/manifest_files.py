"""The manifests that ``dsfs serve`` was started with: whether what lies there now can be read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import structlog
import trio

from daemon.settings import Settings
from dsfs import metrics
from dsfs.errors import ConfigError, one_line
from dsfs.manifest.documents import documents_of, texts_of

log = structlog.get_logger()

_LONGEST_REASON = 1000  # characters
LOOKING = trio.CapacityLimiter(1)
"""The thread that reads manifests: of its own, as a directory that hangs must not take one from others."""


class ManifestFiles:
    """File side only. Changes nothing that is shown: only the next ``dsfs serve`` follows what has changed.

    But a typo is told as soon as it is there. What is shown hides it, until a node starts that has nothing to show yet.
    """

    def __init__(self, settings: Settings) -> None:
        # What `dsfs mount -f` was given is read once: it may be gone the next day, and nobody misses it.
        self.paths = settings.manifest_paths if settings.keeper_alone else ()
        self._seen: Sequence[tuple[str, str]] | None = None  # what is the same need not be parsed again
        self._unreadable = self._not_followed = ""

    @property
    def trouble(self) -> str:
        """Why the manifests cannot be read, or were not followed, in a line; "" when all is well."""
        return self._unreadable or self._not_followed

    async def look(self) -> None:
        """Read them, and parse them if they have changed."""
        trouble = self._unreadable
        seen, self._seen = self._seen, None  # what comes back after it was away is looked at anew
        try:
            read = partial(texts_of, self.paths, none_yet=True)
            texts = await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=LOOKING)
            self._seen = texts
            if texts == seen:
                return
            await trio.to_thread.run_sync(documents_of, texts, abandon_on_cancel=True, limiter=LOOKING)
        except ConfigError as error:
            self._unreadable = f"the manifests cannot be read: {one_line(str(error), _LONGEST_REASON)}"
            if trouble != self._unreadable:
                log.error("the manifests cannot be read, what is shown stays", reason=str(error))
        else:
            self._unreadable = ""
            if trouble:
                log.info("the manifests can be read again, the next server follows them")
        self._tell()

    def note_not_followed(self, error: Exception) -> None:
        """This server goes on with what the one before it has shown."""
        self._not_followed = f"the manifests are not followed: {one_line(str(error), _LONGEST_REASON)}"
        log.error("the manifests are not followed", reason=str(error))
        self._tell()

    def _tell(self) -> None:
        metrics.MANIFESTS_TROUBLE.set(bool(self.trouble))
