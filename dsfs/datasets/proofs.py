"""Which credentials have read which source, written down as slow keyed hashes; a credential itself never is.

A source that is gone can still be served from the cache, to datasets that have read it once with the credentials that
they have now. The hash is scrypt with a random key of this cache directory, as a Secret may hold a weak password.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
import trio
from cachetools import LRUCache

from dsfs.errors import ConfigError

log = structlog.get_logger()

_KEPT = 16  # credentials of one dataset: rotated ones come back when an old revision of a Secret does
_PROOFS = trio.CapacityLimiter(4)
"""Threads of their own: a first read after a restart waits for one, and must not wait for scans."""
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

    def add(self, directory: str, fingerprint: str) -> bool:
        """Write a proof down; True. Raises OSError."""
        return self._rewrite(directory, fingerprint, [fingerprint])

    def remove(self, directory: str, fingerprint: str) -> bool:
        """Forget a proof, if it is there; True. Raises OSError."""
        return self._rewrite(directory, fingerprint, [])

    def _rewrite(self, directory: str, fingerprint: str, last: list[str]) -> bool:
        with self._lock:
            lines = [line for line in _lines(directory) if line != fingerprint]
            _write(f"{directory}/proofs", "".join(f"{line}\n" for line in [*lines, *last][-_KEPT:]).encode())
        return True

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


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read, and with which credentials."""

    identity: str
    credentials: Mapping[str, str]


class ProofOfDataset:
    """What an ``Entitlement`` asks of one dataset. What it reads with is looked up at once, on the file side, as it may
    be another thing when the disk has been waited for."""

    def __init__(self, proofs: Proofs, directory: str, dataset: str) -> None:
        self._proofs = proofs
        self._directory = directory
        self._dataset = dataset

    def guarded(self, in_use: Callable[[], Reading]) -> Reading | None:
        """What is in use; None when that is nothing, which has been told with its reason."""
        try:
            return in_use()
        except ConfigError:
            return None

    async def recall(self, in_use: Callable[[], Reading]) -> bool:
        """Whether this has been read before; False also when that cannot be known."""
        reading = self.guarded(in_use)
        return reading is not None and await trio.to_thread.run_sync(
            self._on_disk, self._proofs.has, reading, limiter=_PROOFS
        )

    async def remember(self, reading: Reading | None) -> None:
        """Write down that it was."""
        if reading is not None:
            await trio.to_thread.run_sync(self._on_disk, self._proofs.add, reading, limiter=_PROOFS)

    async def forget(self, reading: Reading | None) -> None:
        """Write down that it is not any more."""
        if reading is not None:
            await trio.to_thread.run_sync(self._on_disk, self._proofs.remove, reading, limiter=_PROOFS)

    def _on_disk(self, work: Callable[[str, str], bool], reading: Reading) -> bool:
        try:
            return work(self._directory, self._proofs.fingerprint(reading.identity, reading.credentials))
        except OSError as error:  # a full disk: then the source is asked again
            self._cannot(error)
            return False

    def _cannot(self, error: OSError) -> None:
        log.warning("proof of entitlement cannot be kept", dataset=self._dataset, reason=str(error))


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
