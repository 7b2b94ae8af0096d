"""What is read first of files that say by their name what they are: indexes at the end, headers at the start."""

from __future__ import annotations

from dsfs.ranges import ByteRange, KiB, MiB

FOOTER_BYTES = 256 * KiB
HEADER_BYTES = 1 * MiB

_FOOTERS = (".parquet", ".orc", ".arrow", ".feather", ".zip", ".npz", ".lance", ".whl")
_HEADERS = (".safetensors", ".gguf", ".h5", ".hdf5", ".nc", ".idx")


def first_wants(name: str, size_bytes: int) -> ByteRange | None:
    """The range that whoever opens the file wants before anything else; None when nothing says so."""
    lower = name.lower()
    if lower.endswith(_FOOTERS):
        return ByteRange(max(0, size_bytes - FOOTER_BYTES), size_bytes)
    if lower.endswith(_HEADERS):
        return ByteRange(0, min(size_bytes, HEADER_BYTES))
    return None
