"""Every failure by name. A room raises what happened; ``filesystem.errnos`` says which errno a reader gets."""

from __future__ import annotations

from typing import TypeVar

_E = TypeVar("_E", bound=BaseException)


class DsfsError(Exception):
    """Base of all expected failures. The text is one line for a person: what, why, what to do. No secrets."""


class ConfigError(DsfsError):
    """What the user wrote cannot be used: a manifest, a URI, an option."""


class NotShared(ConfigError):
    """A dataset refers to one that is not there, or that its namespace may not see."""


class CacheDirectoryError(DsfsError):
    """The cache directory cannot be used: not writable, of an unknown layout, or in use by another server."""


class CacheDirectoryBusy(CacheDirectoryError):
    """Another server uses the cache directory."""


class MountError(DsfsError):
    """The kernel or the mount point refused."""


class AnotherServes(MountError):
    """The keeper has a server already."""


class NotVisible(DsfsError):
    """No such name for this caller."""


class SourceError(DsfsError):
    """Something went wrong at a source; the subclasses say what."""


class SourceUnavailable(SourceError):
    """The origin failed or answered nonsense (5xx, reset, wrong range). May heal: worth a retry."""


class SourceDeclined(SourceUnavailable):
    """The origin is there, and has answered for this one name that it does not do what was asked (such as 400, 423 or
    451): that says nothing of other names."""


class SourceTimeout(SourceUnavailable):
    """Nothing answered in time."""


class SourceRefused(SourceError):
    """The origin refused the credentials (401, 403)."""


class SourceMissing(SourceError):
    """The origin says, for certain, that it has no such object, bucket or directory."""


class SourceChanged(SourceError):
    """The origin no longer has the version that the catalog lists."""


class SourceUnsupported(SourceError):
    """The source cannot do what was asked, and trying again will not help."""


class SizeImpossible(SourceError):
    """The origin says that a file is of a size that no file can have."""


class RetryLater(SourceUnavailable):
    """The origin asked for patience (429, 503 with Retry-After)."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CacheFull(DsfsError):
    """No room could be made in a tier; what was asked for is served without being kept."""


class PinRefused(DsfsError):
    """What shall be pinned does not fit, or what shall be unpinned is not pinned."""


class CatalogError(DsfsError):
    """A catalog on disk is damaged or of an unknown layout."""


def first_of(group: BaseExceptionGroup[BaseException], kind: type[_E]) -> _E | None:
    """The first failure of a kind in a group, however deep in it; None where there is none."""
    for failure in group.exceptions:
        found = first_of(failure, kind) if isinstance(failure, BaseExceptionGroup) else failure
        if isinstance(found, kind):
            return found
    return None


def one_line(text: str, limit: int = 200) -> str:
    """Text as it may stand in a line: no line breaks or other invisible characters, not longer than ``limit``."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
