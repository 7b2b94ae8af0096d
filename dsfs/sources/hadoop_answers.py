"""What WebHDFS answers: a FileStatus becomes an object, a RemoteException becomes an error of ours.

The status alone says little: the namenode answers 403 to every IOException, which a missing permission, a standby
namenode and a full disk all are (Hadoop's ``web/resources/ExceptionHandler.java``). So the exception's name decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dsfs.errors import RetryLater, SourceError, SourceMissing, SourceRefused, SourceUnavailable, SourceUnsupported
from dsfs.model import Kind, SourceObject

KERBEROS: Final = (
    "it wants Kerberos, which is not built in: put a delegation token, as `hdfs fetchdt` makes it, under token in a "
    "Secret, go through a gateway with username and password, or install hdfs-native and use hdfs:// after kinit"
)
_MISSING: Final = frozenset({"FileNotFoundException", "PathNotFoundException", "ParentNotDirectoryException"})
_REFUSED: Final = frozenset(
    {"AccessControlException", "AuthorizationException", "SecurityException", "AuthenticationException", "InvalidToken"}
)
_LATER: Final = frozenset({"RetriableException", "SafeModeException", "ServerTooBusyException"})
_UNSUPPORTED: Final = frozenset({"UnsupportedOperationException", "IllegalArgumentException"})


class Standby(SourceUnavailable):
    """This namenode does not serve now; another one may."""


def error_of(status: int, body: object, what: str, *, negotiate: bool, retry_after_s: float | None) -> SourceError:
    """The error behind an answer that is none of 200 and 307. ``body`` is parsed JSON or None, ``what`` names the path.

    The text of a RemoteException is left out: it is of many lines, and may repeat parameters of the request.
    """
    remote = body.get("RemoteException") if isinstance(body, dict) else None
    name = str(remote.get("exception", ""))[:80] if isinstance(remote, dict) else ""
    message = str(remote.get("message", "")) if isinstance(remote, dict) else ""
    shown = f"{what}: HTTP {status}" + (f", {name}" if name.isidentifier() else "")
    # A standby cannot check delegation tokens, and then the exception is a SecurityException that says why.
    if name == "StandbyException" or "StandbyException" in message:
        return Standby(f"{shown}: this namenode is a standby")
    if name in _MISSING:
        return SourceMissing(f"{shown}: it is not there")
    if status == 401 and negotiate:
        return SourceRefused(f"{shown}: {KERBEROS}")
    if name in _REFUSED or (not name and status in (401, 403)):
        return SourceRefused(f"{shown}: let the user read it (option username, or token in a Secret)")
    if status in (429, 503) or name in _LATER:
        return RetryLater(f"{shown}: the server asks for patience", retry_after_s)
    if name in _UNSUPPORTED:
        return SourceUnsupported(shown)
    if status == 404 and not name:  # of a proxy, or of a namenode without WebHDFS: says nothing about the file
        return SourceUnavailable(f"{shown} without a reason (is WebHDFS served at this address?)")
    return SourceUnavailable(shown)


def object_of(status: Mapping[str, Any], path: str) -> SourceObject | None:
    """None for what is neither file, directory nor link. Raises SourceUnavailable for what no namenode says.

    Version tag: length, modification time in ms, and the inode's number, which a file written anew does not keep.
    """
    length, modified, file_id = (_number(status.get(key, 0), path) for key in ("length", "modificationTime", "fileId"))
    kind, mtime_ns = status.get("type"), modified * 10**6
    if kind == "DIRECTORY":
        return SourceObject(path, Kind.DIRECTORY, 0, mtime_ns)
    tag = f"{length}-{modified}" + (f"-{file_id}" if file_id else "")
    if kind == "FILE":
        return SourceObject(path, Kind.FILE, length, mtime_ns, tag)
    if kind == "SYMLINK":
        return SourceObject(path, Kind.SYMLINK, 0, mtime_ns, tag, str(status.get("symlink", "")))
    return None


def listed(body: object, what: str) -> tuple[list[Mapping[str, Any]], int]:
    """The entries of LISTSTATUS or LISTSTATUS_BATCH, and how many are still to come."""
    remaining = 0
    if isinstance(body, dict) and isinstance(batch := body.get("DirectoryListing"), dict):
        remaining, body = _number(batch.get("remainingEntries", 0), what), batch.get("partialListing")
    statuses = body.get("FileStatuses") if isinstance(body, dict) else None
    entries = statuses.get("FileStatus") if isinstance(statuses, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SourceUnavailable(f"{what}: that is no listing")
    return entries, remaining


def name_of(entry: Mapping[str, Any]) -> str | None:
    """The name in its directory; "" when a file was listed. None for a name that no path can have."""
    name = entry.get("pathSuffix", "")
    if not isinstance(name, str) or "/" in name:
        return None
    try:
        name.encode()  # Java's strings may hold half of a surrogate pair, and no URL can ask for that
    except UnicodeEncodeError:
        return None
    return name


def _number(value: object, what: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise SourceUnavailable(f"{what}: a size or time in the answer is not a number")
