"""Checking everything that is cached, and finding again what the index has lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from dsfs.cache.blockmap import BlockMap
from dsfs.cache.damage import DamagedObject, is_of_the_object
from dsfs.cache.layout import is_map
from dsfs.cache.mapfile import HEADER, State
from dsfs.cache.node import NodeTier
from dsfs.cache.past_cache import ReadRange
from dsfs.ranges import block_range

log = structlog.get_logger()


@dataclass(slots=True)
class Verified:
    """What a check found. ``bad`` counts blocks, and objects whose map could not be used; all were dropped."""

    objects: int = 0
    blocks: int = 0
    bytes: int = 0
    bad: int = 0


def verify(tier: NodeTier, progress: Callable[[Verified], None] = lambda _: None) -> Verified:
    """Compare every cached block with its checksum; drop what is wrong. Blocks on the disk; hours for terabytes.

    Raises OSError of what says nothing about the cache: no descriptors, no memory.
    """
    found = Verified()
    for key in keys_on_disk(tier.layout.objects):
        found.objects += 1
        try:
            obj = open_by_key(tier, key)
        except FileNotFoundError:
            found.objects -= 1  # evicted while we came here
            continue
        except (DamagedObject, OSError) as error:
            drop_damaged(tier, key, error)
            found.bad += 1
            continue
        _verify_object(tier, obj, found)
        progress(found)
    return found


def verify_one(tier: NodeTier, key: str) -> None:
    """As ``verify``, of one object that may be there."""
    try:
        _verify_object(tier, open_by_key(tier, key), Verified())
    except FileNotFoundError:
        return
    except (DamagedObject, OSError) as error:
        drop_damaged(tier, key, error)


def drop_damaged(tier: NodeTier, key: str, error: DamagedObject | OSError) -> None:
    """Drop an object that could not be opened. Raises the error if that is no fault of the object's."""
    if not is_of_the_object(error):
        raise error
    tier.drop_damaged(key, error)


def is_right(obj: BlockMap, block: int, read: ReadRange | None = None) -> bool:
    """Whether a block is what its checksum says (``BlockMap.check``). Raises OSError, where that is not its fault."""
    try:
        return obj.check(block, read)
    except (DamagedObject, OSError) as error:
        if not is_of_the_object(error):
            raise
        log.warning("cached block cannot be read", key=obj.key, block=block, reason=str(error))
        return False


def _verify_object(tier: NodeTier, obj: BlockMap, found: Verified) -> None:
    for block in range(obj.blocks):
        if obj.state(block) == State.ABSENT:
            continue
        found.blocks += 1
        if is_right(obj, block):
            found.bytes += block_range(block, obj.size_bytes, obj.block_bytes).length
            continue
        found.bad += 1
        tier.drop_bad_block(obj, block)
        if obj.complete:
            return  # dropped as a whole


def rebuild_index(tier: NodeTier, go_on: Callable[[], None] = lambda: None) -> None:
    """Note in the index what lies in objects/ and is not in it, or not all of it; remove data that lost its map. Blocks
    on the disk.

    While the cache is in use: what comes just now, or is open, is neither removed nor counted twice. ``go_on`` is
    called in between, and may raise.
    """
    for key in keys_on_disk(tier.layout.objects):
        go_on()
        with tier.clearing(key) as nobodys:
            if nobodys:
                _note(tier, key)
        if not nobodys:
            tier.recount(key)
    for directory, _names, files in os.walk(tier.layout.objects):
        go_on()
        for name in files:
            key, rest = name[:64], name[64:]
            if rest and not rest.endswith(".new"):
                continue
            with tier.clearing(key, even_open=bool(rest)) as nobodys:
                # looked at inside: since the directory was listed a map may have come
                if nobodys and (rest or not os.path.exists(tier.layout.map_path(key))):
                    _remove(f"{directory}/{name}")


def _note(tier: NodeTier, key: str) -> None:
    known_bytes, _content_bytes = tier.index.known(key)  # outside: what goes wrong there is no fault of the object's
    try:
        if known_bytes == tier.layout.object_space_bytes(key):
            return
        obj = open_by_key(tier, key)  # it has grown, or shrunk, since the index was written last
    except FileNotFoundError:
        return
    except (DamagedObject, OSError) as error:
        if isinstance(error, OSError) and not is_of_the_object(error):
            tier.note_trouble(error)  # who reads it finds it again
            return
        tier.note_damaged(key, error)
        tier.drop_cleared(key)
        return
    if obj.present_bytes():
        tier.count_found(obj)
    else:
        tier.drop_cleared(key)


def keys_on_disk(objects: str) -> Iterator[str]:
    """The keys of all objects that have a map."""
    for fan in sorted(os.listdir(objects)):
        try:
            names = os.listdir(f"{objects}/{fan}")
        except NotADirectoryError:
            continue
        for name in names:
            if is_map(name):
                yield name[:-4]


def open_by_key(tier: NodeTier, key: str) -> BlockMap:
    """Open an object of which only the key is known: its header says the rest."""
    with open(tier.layout.map_path(key), "rb") as file:
        header = file.read(HEADER.size)
    if len(header) != HEADER.size:
        raise DamagedObject(f"map of {key} is torn")
    _magic, _generation, size_bytes, block_bytes, _crc, _boot, _key = HEADER.unpack(header)
    if not 0 < block_bytes <= 1 << 30 or size_bytes > 1 << 60:
        raise DamagedObject(f"map of {key} has an impossible size")
    return BlockMap.open(tier.layout.object_path(key), key, size_bytes, block_bytes, tier.boot)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
