"""Hashes of content that a server tells in the headers of its answers, and those that its ETags may be.

An explicit one (Repr-Digest, Digest, Content-MD5, x-amz-checksum-…) is a promise and is held to.

An ETag is an opaque string. S3 makes it the MD5 of an object that came in one part and is not encrypted with a key of
KMS or of the customer; many stores that speak S3 do the same, some put a random number or a hash of something else
there that looks just alike, and no listing says which it is. So a file must never be refused because its ETag looks
like an MD5: when the bytes differ from it they are fetched again, and if the second fetch brings the very same bytes,
it is the ETag that is no MD5: one line in the log, and no ETag of that source is compared any more. Two fetches that
differ are two fetches of which one is wrong, whatever the ETag is; then the one that fits it is taken. Large files, of
which many may be read just once, need not come twice when several do not fit and none has fitted yet.

MD5 costs 1.4 CPU-s per GiB, half again what fetching small objects does. For a guess that is only worth it as long as
nobody notices: a tenth of one processor (``_Allowance``); what comes faster than that goes unlooked at.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Final

import structlog
from cachetools import LRUCache

from dsfs.model import SourceObject
from dsfs.ranges import MiB
from dsfs.sources.digest import Digest

log = structlog.get_logger()

_REMEMBERED: Final = 4096
_SILENT: Final = 8
"""After so many answers without a hash, and none with one, a server is not asked for one any more."""
_MD5: Final = re.compile(r"[0-9a-f]{32}")


class ToldDigests:
    """What one source's answers have told. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._by_object: LRUCache[tuple[str, str], Digest] = LRUCache(_REMEMBERED)
        self._told = False
        self._silent = 0

    @property
    def worth_asking(self) -> bool:
        return self._told or self._silent < _SILENT

    def asked(self, digest: Digest | None) -> None:
        """What came of asking."""
        with self._lock:
            self._told = self._told or digest is not None
            self._silent += digest is None

    def note(self, obj: SourceObject, digest: Digest | None) -> None:
        """What an answer with bytes of an object has told beside them."""
        if digest is not None:
            with self._lock:
                self._by_object[obj.path, obj.version_tag] = digest

    def of(self, obj: SourceObject) -> Digest | None:
        if not self._by_object:
            return None
        with self._lock:
            return self._by_object.get((obj.path, obj.version_tag))


class EtagDigests:
    """ETags of one source that may be MD5s. Any thread."""

    def __init__(self, source: str, *, usable: bool = True) -> None:
        self._source = source
        self._usable = usable
        self._allowance = _Allowance()

    def of(self, etag: str, size_bytes: int) -> Digest | None:
        """What the content may hash to; None when it cannot be, and when hashing would cost too much just now."""
        if not self._usable or not _MD5.fullmatch(etag) or not self._allowance.take(size_bytes):
            return None
        return Digest("md5", etag, disown=self.disown)

    def disown(self) -> None:
        """They are no MD5s."""
        if self._usable:
            self._usable = False
            log.info(
                "ETags of this source look like MD5 and are not, they are not compared any more", source=self._source
            )


class _Allowance:
    """So many bytes a second, and some at once. Any thread."""

    _BYTES_PER_S = 64 * MiB
    _AT_ONCE = 256 * MiB

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = float(self._AT_ONCE)
        self._since_s = time.monotonic()

    def take(self, size_bytes: int) -> bool:
        with self._lock:
            now_s = time.monotonic()
            self._left = min(self._AT_ONCE, self._left + (now_s - self._since_s) * self._BYTES_PER_S)
            self._since_s = now_s
            if size_bytes > self._left:
                return False
            self._left -= size_bytes
            return True
