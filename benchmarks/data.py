"""What is read: made once in a directory, then copied to the origin."""

from __future__ import annotations

import json
import os
import random
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

FILE_BYTES = 110_000  # an ImageNet picture
NAMES_PER_DIRECTORY = 100
FIRST_MIB = 5  # more than is fetched whole on first use
LAYER_MIB = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. ``large_bytes`` is one file, and all of ``shards`` together; ``names`` are files of one
    byte for ``find``, ``firsts`` files of which the first byte is read, ``layers`` tensors of 16 MiB in one file."""

    large_bytes: int
    small_files: int
    names: int
    shards: int = 0
    firsts: int = 0
    layers: int = 0


def make(root: Path, sizes: Sizes) -> None:
    """large/file.bin, shards/N.bin, first/NN.bin, model/model.safetensors, small/NNN/NNNNN.jpg, names/NNN/NNNNN; the
    same bytes every time."""
    rng = random.Random(7)
    _write(root / "large/file.bin", rng, sizes.large_bytes >> 20)
    for number in range(sizes.small_files):
        path = root / f"small/{number // NAMES_PER_DIRECTORY:03}/{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(FILE_BYTES))
    for number in range(sizes.shards):
        _write(root / f"shards/{number}.bin", rng, (sizes.large_bytes // sizes.shards) >> 20)
    for number in range(sizes.firsts):
        _write(root / f"first/{number:02}.bin", rng, FIRST_MIB)
    if sizes.layers:
        _write(root / "model/model.safetensors", rng, sizes.layers * LAYER_MIB, _safetensors_header(sizes.layers))
    for number in range(sizes.names):
        path = root / f"names/{number // NAMES_PER_DIRECTORY:04}/{number:06}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def _write(path: Path, rng: random.Random, size_mib: int, header: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header)
        for _ in range(size_mib):
            file.write(rng.randbytes(1 << 20))


def _safetensors_header(layers: int) -> bytes:
    """Tensors of bytes, one behind the other, as huggingface/safetensors describes its format."""
    size = LAYER_MIB << 20
    tensors = {
        f"layer.{number:03}": {"dtype": "U8", "shape": [size], "data_offsets": [number * size, (number + 1) * size]}
        for number in range(layers)
    }
    text = json.dumps(tensors).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def drop_caches() -> None:
    """Forget the page cache; dentries and inodes stay, as they would in a run of hours."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1\n")


def fresh(directory: Path, name: str) -> Path:
    """A new directory. Nothing is removed before the end: ext4 looks through inodes that were just deleted when it
    makes files, which made a cold epoch three times as slow."""
    return Path(tempfile.mkdtemp(prefix=name, dir=directory))
