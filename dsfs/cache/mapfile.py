"""The block map on disk: header, one state byte and one crc32c for each block of an object.

0    8   magic "dsfsmap1"
8    8   generation, raised before blocks are taken back
16   8   size of the object in bytes
24   4   block size in bytes
28   4   crc32c of bytes 0-8, 16-28 and 48-80 (what never changes)
32   16  boot id under which the states were last true
48   32  key of the object
80   n   state of each block: State
..   4n  crc32c of each block, after padding to a multiple of 8
"""

from __future__ import annotations

import struct
from enum import IntEnum

from crc32c import crc32c as _crc32c

from dsfs.ranges import block_count

MAGIC = b"dsfsmap1"
HEADER = struct.Struct("=8sQQII16s32s")
GENERATION = struct.Struct("=Q")
GENERATION_AT = 8
BOOT_AT = 32
STATES_AT = HEADER.size


class State(IntEnum):
    """Of one block. UNCHECKED was written under another boot: its bytes count only after their crc32c was checked."""

    ABSENT = 0
    PRESENT = 1
    UNCHECKED = 2


def checksums_at(blocks: int) -> int:
    """Offset of the checksums in a map of so many blocks."""
    return (STATES_AT + blocks + 7) // 8 * 8


def map_bytes(blocks: int) -> int:
    """Size in bytes of a map of so many blocks."""
    return checksums_at(blocks) + 4 * blocks


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4)."""
    return _crc32c(data)


def pack_header(key: str, size_bytes: int, block_bytes: int, boot: bytes) -> bytes:
    """The header of a new map, generation 0."""
    raw_key = bytes.fromhex(key)
    return HEADER.pack(
        MAGIC, 0, size_bytes, block_bytes, _identity_crc(size_bytes, block_bytes, raw_key), boot, raw_key
    )


def header_is_of(header: bytes, key: str, size_bytes: int, block_bytes: int) -> bool:
    """Whether these bytes are the header of a map of this very object."""
    if len(header) != HEADER.size:
        return False
    magic, _generation, size, block, crc, _boot, raw_key = HEADER.unpack(header)
    return bool(
        magic == MAGIC
        and raw_key.hex() == key
        and size == size_bytes
        and block == block_bytes
        and crc == _identity_crc(size, block, raw_key)
    )


def pack_complete(key: str, size_bytes: int, block_bytes: int, boot: bytes, checksums: list[int]) -> bytes:
    """The whole map of an object of which every block is present."""
    blocks = block_count(size_bytes, block_bytes)
    states = bytes([State.PRESENT]) * blocks
    padding = b"\0" * (checksums_at(blocks) - STATES_AT - blocks)
    return b"".join(
        (pack_header(key, size_bytes, block_bytes, boot), states, padding, struct.pack(f"={blocks}I", *checksums))
    )


def stored_checksums(map_path: str, key: str, size_bytes: int, block_bytes: int) -> list[int | None]:
    """The crc32c of each block as the map on disk has it; None for one that is not there. Blocks on the disk."""
    blocks = block_count(size_bytes, block_bytes)
    try:
        with open(map_path, "rb") as file:
            raw = file.read(map_bytes(blocks) + 1)
    except FileNotFoundError:
        raw = b""
    if len(raw) != map_bytes(blocks) or not header_is_of(raw[: HEADER.size], key, size_bytes, block_bytes):
        return [None] * blocks
    states = raw[STATES_AT : STATES_AT + blocks]
    sums = struct.unpack_from(f"={blocks}I", raw, checksums_at(blocks))
    return [checksum if state != State.ABSENT else None for state, checksum in zip(states, sums, strict=True)]


def _identity_crc(size_bytes: int, block_bytes: int, raw_key: bytes) -> int:
    return crc32c(MAGIC + struct.pack("=QI", size_bytes, block_bytes) + raw_key)
