"""Which credentials have read which source, written down as slow keyed hashes; a credential itself never is.

A source that is gone can still be served from the cache, to datasets that have read it once with the credentials that
they have now. The hash is scrypt with a random key of this cache directory, as a Secret may hold a weak password.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping

import structlog
import trio
from cachetools import LRUCache

from dsfs.datasets.selection import CATALOG
from dsfs.errors import ConfigError

log = structlog.get_logger()

_KEPT = 16  # credentials of one dataset: rotated ones come back when an old revision of a Secret does
_SCRYPT = {"n": 2**12, "r": 8, "p": 1, "dklen": 32}  # 4 MiB, about 10 ms: once for each source and credentials


class Proofs:
    """Beside the catalogs; a file for each dataset, a line for each proof. Blocks on the disk, from any thread."""

    def __init__(self, directory: str) -> None:
        self._key_file = f"{directory}/proof.key"
        self._made: LRUCache[tuple[str, ...], str] = LRUCache(1024)
        self._lock = threading.Lock()  # guards _made and all writing: two datasets may be the first at once

    def fingerprint(self, identity: str, credentials: Mapping[str, str]) -> str:
        """The same for the same source and credentials in this cache directory. Raises OSError."""
        parts = (identity, *(part for item in sorted(credentials.items()) for part in item))
        with self._lock:
            known = self._made.get(parts)
            if known is None:
                raw = b"".join(
                    len(text).to_bytes(8, "big") + text
                    for text in (part.encode("utf-8", "surrogateescape") for part in parts)
                )
                known = self._made[parts] = hashlib.scrypt(raw, salt=self._key(), **_SCRYPT).hex()
            return known

    def has(self, directory: str, fingerprint: str) -> bool:
        """Whether a proof is written down in a dataset's directory."""
        return fingerprint in _lines(directory)

    def add(self, directory: str, fingerprint: str) -> None:
        """Write a proof down. Raises OSError."""
        with self._lock:
            lines = [line for line in _lines(directory) if line != fingerprint]
            _write(f"{directory}/proofs", "".join(f"{line}\n" for line in [*lines, fingerprint][-_KEPT:]).encode())

    def _key(self) -> bytes:
        try:
            with open(self._key_file, "rb") as file:
                key = file.read()
        except FileNotFoundError:
            key = b""
        if len(key) != 32:
            key = os.urandom(32)
            _write(self._key_file, key)
        return key


class ProofOfDataset:
    """What an ``Entitlement`` asks. ``credentials`` and ``identity``: what the dataset reads with now, and what."""

    def __init__(
        self,
        proofs: Proofs,
        directory: str,
        dataset: str,
        credentials: Callable[[], Mapping[str, str]],
        identity: Callable[[], str],
    ) -> None:
        self._proofs = proofs
        self._directory = directory
        self._dataset = dataset
        self._credentials = credentials
        self._identity = identity

    async def recall(self) -> bool:
        """Whether the credentials of now have read this source before; False also when that cannot be known."""
        return await trio.to_thread.run_sync(self._guarded, self._recall, self._identity(), limiter=CATALOG)

    async def remember(self) -> None:
        """Write down that they have."""
        await trio.to_thread.run_sync(self._guarded, self._remember, self._identity(), limiter=CATALOG)

    def _recall(self, identity: str) -> bool:
        return self._proofs.has(self._directory, self._proofs.fingerprint(identity, self._credentials()))

    def _remember(self, identity: str) -> bool:
        self._proofs.add(self._directory, self._proofs.fingerprint(identity, self._credentials()))
        return True

    def _guarded(self, work: Callable[[str], bool], identity: str) -> bool:
        try:
            return work(identity)
        except (OSError, ConfigError) as error:  # a full disk, a Secret that is gone: then the source is asked again
            log.warning("proof of entitlement cannot be kept", dataset=self._dataset, reason=str(error))
            return False


def _lines(directory: str) -> list[str]:
    try:
        with open(f"{directory}/proofs", encoding="ascii", errors="replace") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def _write(path: str, data: bytes) -> None:
    temporary = f"{path}.new"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
