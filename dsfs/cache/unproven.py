"""Which objects are still to be compared with the hash that their source has of them, though all of one may be here.

An empty file for each, beside the index and not in it: an index that was lost must not make them proven. The mark is
made before the object is, and goes when the hash was right or the object does; so a server that ends between the last
block and the hash leaves one, and the next server hashes what it is about as soon as somebody uses it.
"""

from __future__ import annotations

import os


class Unproven:
    """Any thread. What is in it is known in memory; the files are for the next server."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        self._keys = set(os.listdir(directory))
        self._put_off: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._keys and key not in self._put_off

    def add(self, key: str) -> None:
        """Of an object that is about to be made. Raises OSError; then it is known in memory only."""
        self._put_off.discard(key)
        if key not in self._keys:
            self._keys.add(key)
            os.close(os.open(f"{self._directory}/{key}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def discard(self, key: str) -> None:
        """It is proven, or gone. Raises OSError."""
        if key in self._keys:
            self._keys.discard(key)
            self._put_off.discard(key)
            try:
                os.unlink(f"{self._directory}/{key}")
            except FileNotFoundError:
                return  # the disk had refused it

    def put_off(self, key: str) -> None:
        """It cannot be known now, and nobody shall wait for it; the next server tries again."""
        self._put_off.add(key)
