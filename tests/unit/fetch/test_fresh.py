"""Blocks in memory between their landing and their reader; buffers that are used again and never twice at once."""

from __future__ import annotations

import trio
import trio.testing

from dsfs.fetch.buffers import Buffers
from dsfs.fetch.fresh import KEPT_S, Fresh
from dsfs.model import Tier
from dsfs.ranges import ByteRange

BLOCK = 10
SIZE = 45


def block_of(number: int) -> memoryview:
    return memoryview(bytes([number]) * min(BLOCK, SIZE - number * BLOCK))


def test_a_range_is_given_once_it_is_whole_and_a_block_goes_when_its_end_was_read() -> None:
    trio.run(given_once)


async def given_once() -> None:
    fresh = Fresh(100, BLOCK)
    for number in (0, 1, 4):
        fresh.add("key", number, block_of(number))
    assert fresh.pieces("key", SIZE, ByteRange(15, 25)) is None
    pieces = fresh.pieces("key", SIZE, ByteRange(3, 17))
    assert pieces is not None
    assert b"".join(pieces) == b"\0" * 7 + b"\1" * 7
    assert fresh.block("key", 0) is None
    assert fresh.block("key", 1) is not None
    assert fresh.pieces("other", SIZE, ByteRange(13, 17)) is None
    pieces = fresh.pieces("key", SIZE, ByteRange(40, 45))
    assert pieces is not None
    assert b"".join(pieces) == b"\4" * 5
    assert fresh.used_bytes == 10


def test_what_nobody_keeps_is_told_apart_and_counts_as_what_brought_it() -> None:
    trio.run(told_apart)


async def told_apart() -> None:
    fresh = Fresh(100, BLOCK)
    fresh.add("key", 0, block_of(0))
    fresh.add("key", 1, block_of(1), Tier.SHARED)
    assert [fresh.is_only_here("key", number) for number in range(3)] == [False, True, False]
    assert (fresh.tier_of("key", 0), fresh.tier_of("key", 1)) == (Tier.NODE, Tier.SHARED)
    fresh.add("key", 1, block_of(1))  # it came again, and is kept by now
    assert not fresh.is_only_here("key", 1)
    assert fresh.used_bytes == 2 * BLOCK


def test_what_nobody_keeps_stays_until_all_parts_of_it_were_read_in_any_order() -> None:
    trio.run(in_any_order)


async def in_any_order() -> None:
    fresh = Fresh(100, BLOCK)
    fresh.add("key", 1, block_of(1), Tier.ORIGIN)
    for wanted in (ByteRange(15, 20), ByteRange(10, 12)):
        pieces = fresh.pieces("key", SIZE, wanted)
        assert pieces is not None
        assert b"".join(pieces) == b"\1" * wanted.length
        assert fresh.is_only_here("key", 1)
    assert fresh.pieces("key", SIZE, ByteRange(12, 15)) is not None
    assert not fresh.is_only_here("key", 1)
    assert fresh.is_empty


def test_what_came_wrong_is_forgotten() -> None:
    trio.run(forgotten)


async def forgotten() -> None:
    fresh = Fresh(100, BLOCK)
    for number in range(3):
        fresh.add("key", number, block_of(number), Tier.ORIGIN if number else Tier.NODE)
    fresh.add("other", 0, block_of(0))
    fresh.forget("key")
    assert [fresh.block("key", number) for number in range(3)] == [None] * 3
    assert fresh.used_bytes == BLOCK
    assert not fresh.awaited("key")


def test_the_oldest_go_when_it_is_full_and_all_go_that_nobody_comes_for() -> None:
    trio.run(growing_old, clock=trio.testing.MockClock(autojump_threshold=0))


async def growing_old() -> None:
    fresh = Fresh(30, BLOCK)
    for number in range(4):
        fresh.add("key", number, block_of(number))
    assert [fresh.block("key", number) is None for number in range(4)] == [True, False, False, False]
    fresh.add("key", 3, block_of(3))
    assert fresh.used_bytes == 30
    await trio.sleep(KEPT_S / 2)
    fresh.add("late", 0, block_of(0))
    assert fresh.awaited("key")
    await trio.sleep(KEPT_S / 2)
    assert not fresh.awaited("key")
    assert fresh.awaited("late")
    assert fresh.used_bytes == 10


def test_memory_is_used_again_when_the_last_view_of_it_is_gone() -> None:
    buffers = Buffers(4096, kept=1)
    first = buffers.take()
    first[:3] = b"one"
    part = first[1:3].toreadonly()
    del first
    second = buffers.take()
    second[:3] = b"two"
    assert part == b"ne"
    del part
    third = buffers.take()
    assert bytes(third[:3]) == b"one"  # holds anything; here what was left
    assert bytes(second[:3]) == b"two"
