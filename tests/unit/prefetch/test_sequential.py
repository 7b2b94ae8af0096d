"""Read-ahead asks for what a forward reader will want, once, inside the file, and for nothing else."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.prefetch.sequential import (
    FIRST_WINDOW_BYTES,
    RAMP_WINDOW_BYTES,
    SLACK_BYTES,
    STREAMS_PER_FILE,
    Streams,
)
from dsfs.prefetch.worth import Worth
from dsfs.ranges import ByteRange, KiB, MiB

LONGEST = 64 * MiB
REQUEST = 1 * MiB

sizes = st.integers(1, 200 * MiB)


def requests(size: int, length: int = REQUEST) -> list[ByteRange]:
    return [ByteRange(start, min(start + length, size)) for start in range(0, size, length)]


def shuffled_within_slack(ranges: list[ByteRange], draws: list[int]) -> list[ByteRange]:
    """An order of arrival as of a kernel that has a few requests in flight at once: none ends more than the slack
    behind one that is still to come."""
    waiting, arrived = list(ranges), []
    for turn in range(len(ranges)):
        near = sum(wanted.stop - waiting[0].start <= SLACK_BYTES for wanted in waiting)
        arrived.append(waiting.pop(draws[turn % len(draws)] % near if draws else 0))
    return arrived


@given(sizes, st.lists(st.integers(0, 2**20), max_size=40))
@settings(deadline=None, max_examples=100)
def test_a_sequential_reader_gets_everything_ahead_once_in_any_order(size: int, draws: list[int]) -> None:
    streams = Streams()
    asked: list[ByteRange] = []
    arrivals = shuffled_within_slack(requests(size), draws)
    first = arrivals.index(ByteRange(0, min(REQUEST, size)))
    for wanted in arrivals:
        ahead = streams.on_read(wanted, size, LONGEST)
        if ahead is not None:
            asked.append(ahead)
    for one, after in itertools.pairwise(asked):
        assert after.start >= one.stop, "what was asked for once is not asked for again"
    assert all(0 <= r.start < r.stop <= size for r in asked)
    assert sum(r.length for r in asked) <= size
    if first == 0 and size > REQUEST:
        covered = {byte for r in asked for byte in range(r.start // REQUEST, -(-r.stop // REQUEST))}
        due = set(range(1, -(-size // REQUEST)))
        assert due <= covered, "all that comes behind the first request was asked for ahead of it"


@given(sizes)
@settings(deadline=None, max_examples=40)
def test_each_request_of_a_reader_in_order_was_asked_for_before_it_came(size: int) -> None:
    streams = Streams()
    ahead_to = 0
    for number, wanted in enumerate(requests(size)):
        assert number == 0 or wanted.stop <= ahead_to
        ahead = streams.on_read(wanted, size, LONGEST)
        if ahead is not None:
            assert ahead.start == max(ahead_to, wanted.stop)
            assert ahead.stop - wanted.stop <= LONGEST
            ahead_to = ahead.stop


@given(st.lists(st.integers(1, 2**20), min_size=1, max_size=60, unique=True), st.integers(1, 64 * KiB))
def test_random_reads_ask_for_nothing(places: list[int], length: int) -> None:
    """No two within the slack, none at the start."""
    size = 2**20 * 3 * SLACK_BYTES
    streams = Streams()
    for place in places:
        start = place * 2 * SLACK_BYTES
        assert streams.on_read(ByteRange(start, start + length), size, LONGEST) is None


@given(
    st.integers(1, 100 * MiB),
    st.lists(st.tuples(st.integers(0, 100 * MiB), st.integers(1, 2 * MiB)), max_size=60),
)
@settings(deadline=None)
def test_whatever_is_read_ahead_lies_inside_the_file_and_behind_the_read(
    size: int, reads: list[tuple[int, int]]
) -> None:
    streams = Streams()
    for start, length in reads:
        wanted = ByteRange(start, start + length).clipped(size)
        if wanted.length == 0:
            continue
        ahead = streams.on_read(wanted, size, LONGEST)
        if ahead is not None:
            assert wanted.stop <= ahead.start < ahead.stop <= size
            assert ahead.stop <= wanted.stop + SLACK_BYTES + 2 * LONGEST
        assert len(streams._streams) <= STREAMS_PER_FILE


def test_the_first_read_at_the_start_is_worth_a_window() -> None:
    assert Streams().on_read(ByteRange(0, 128 * KiB), 1000 * MiB, LONGEST) == ByteRange(128 * KiB, FIRST_WINDOW_BYTES)


def test_a_header_alone_brings_nothing_and_who_goes_on_gets_as_much_as_others() -> None:
    streams = Streams()
    assert streams.on_read(ByteRange(0, 16 * KiB), 1000 * MiB, LONGEST) is None
    ahead = streams.on_read(ByteRange(16 * KiB, 48 * KiB), 1000 * MiB, LONGEST)
    assert ahead is not None
    assert (ahead.start, ahead.stop) == (48 * KiB, FIRST_WINDOW_BYTES)


def test_the_second_read_in_the_middle_begins_a_small_window() -> None:
    streams = Streams()
    start = 500 * MiB
    assert streams.on_read(ByteRange(start, start + REQUEST), 1000 * MiB, LONGEST) is None
    asked = []
    for number in range(1, 40):
        place = start + number * REQUEST
        ahead = streams.on_read(ByteRange(place, place + REQUEST), 1000 * MiB, LONGEST)
        if ahead is not None:
            asked.append(ahead)
    assert asked
    assert RAMP_WINDOW_BYTES <= asked[-1].length <= LONGEST


def test_several_readers_of_one_file_do_not_disturb_each_other() -> None:
    size, streams = 4096 * MiB, Streams()
    starts = [number * 1024 * MiB for number in range(STREAMS_PER_FILE)]
    ahead_to = dict.fromkeys(starts, 0)
    for number in range(64):
        for start in starts:
            place = start + number * REQUEST
            ahead = streams.on_read(ByteRange(place, place + REQUEST), size, LONGEST)
            if ahead is not None:
                assert ahead.start >= ahead_to[start]
                ahead_to[start] = ahead.stop
    assert all(stop >= start + 64 * REQUEST for start, stop in ahead_to.items())


def test_what_is_settled_counts_once_and_not_if_its_reader_goes_on() -> None:
    worth = Worth()
    streams = Streams(worth)
    streams.on_read(ByteRange(0, REQUEST), 1000 * MiB, LONGEST)
    first = FIRST_WINDOW_BYTES - REQUEST
    for _ in range(2):
        streams.settle()
        assert (worth.used_bytes, worth.wasted_total) == (0, first)
    ahead = streams.on_read(ByteRange(REQUEST, FIRST_WINDOW_BYTES), 1000 * MiB, LONGEST)
    assert ahead is not None
    assert ahead.start == FIRST_WINDOW_BYTES
    assert (worth.used_bytes, worth.wasted_total) == (0, 0)
    streams.settle()
    assert worth.wasted_total == 0, "it came to some of it, and may come again"
    assert streams.end() == [ahead]
    assert (worth.used_bytes, worth.wasted_total) == (first, ahead.length)


def test_what_was_settled_is_withdrawn_when_its_file_is_closed() -> None:
    worth = Worth()
    streams = Streams(worth)
    ahead = streams.on_read(ByteRange(0, REQUEST), 1000 * MiB, LONGEST)
    streams.settle()
    assert streams.end() == [ahead]
    assert (worth.used_bytes, worth.wasted_total) == (0, FIRST_WINDOW_BYTES - REQUEST)


def test_a_reader_that_goes_on_is_believed_whatever_others_wasted() -> None:
    """Many looked at the heads of files alone."""
    worth = Worth()
    worth.note(0, 1024 * MiB)
    streams = Streams(worth)
    size, furthest = 1024 * MiB, 0
    for wanted in requests(size):
        ahead = streams.on_read(wanted, size, LONGEST)
        if ahead is not None:
            furthest = ahead.stop
        assert furthest - wanted.stop <= 2 * wanted.stop, "what may be in vain is twice what was not"
        if wanted.stop == 96 * MiB:
            assert furthest - wanted.stop >= LONGEST // 2, "it has all there is"
