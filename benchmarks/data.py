"""What is read: made once in a directory, then copied to the origin."""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

FILE_BYTES = 110_000  # an ImageNet picture
NAMES_PER_DIRECTORY = 100


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. ``large_bytes`` is one file; ``names`` are empty files for ``find``."""

    large_bytes: int
    small_files: int
    names: int


def make(root: Path, sizes: Sizes) -> None:
    """large/file.bin, small/NNN/NNNNN.jpg, names/NNN/NNNNN; the same bytes every time."""
    rng = random.Random(7)
    (root / "large").mkdir(parents=True)
    with (root / "large/file.bin").open("wb") as file:
        for _ in range(sizes.large_bytes >> 20):
            file.write(rng.randbytes(1 << 20))
    for number in range(sizes.small_files):
        path = root / f"small/{number // NAMES_PER_DIRECTORY:03}/{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(FILE_BYTES))
    for number in range(sizes.names):
        path = root / f"names/{number // NAMES_PER_DIRECTORY:04}/{number:06}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def drop_caches() -> None:
    """Forget the page cache; dentries and inodes stay, as they would in a run of hours."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1\n")


def fresh(directory: Path, name: str) -> Path:
    """A new directory. Nothing is removed before the end: ext4 looks through inodes that were just deleted when it
    makes files, which made a cold epoch three times as slow."""
    return Path(tempfile.mkdtemp(prefix=name, dir=directory))
