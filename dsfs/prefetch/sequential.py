"""Read-ahead for readers that go forward, several of them in one file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsfs.prefetch.worth import Worth
from dsfs.ranges import ByteRange, KiB, MiB

STREAMS_PER_FILE = 4
FIRST_WINDOW_BYTES = 16 * MiB  # a file that is read from its start is mostly read to its end: no slow ramp-up
HEAD_BYTES = 128 * KiB  # but a first read of less may be all: of a header, for which the kernel asks for 16 KiB
RAMP_WINDOW_BYTES = 4 * MiB  # what a second read right behind a first one in the middle is worth
STEP_BYTES = 8 * MiB  # ahead is asked for in steps of one long request
LEAST_WINDOW_BYTES = 1 * MiB
_HOPS = 2  # in a row, after which the next is expected
READ_SHARE = 2  # of what it has read, whatever came of other readers: one that goes on is believed
BLOCK_BYTES = 1 * MiB  # come together: who reads a part of each leaves out nothing
SLACK_BYTES = 4 * MiB  # the kernel's own read-ahead sends several requests at once, and they arrive in any order


@dataclass(slots=True)
class Stream:
    """One reader of one file. All in bytes: where it began, where it is, how far was asked ahead, how far it may go."""

    begin: int
    position: int
    ahead: int
    window: int
    sequential: bool
    read: int = 0
    touched: int = 0
    """Blocks up to here count as read."""
    jumps: int = 0
    """How often it has left out more than it has read."""
    asked: int = 0
    settled: int = 0
    """So much of that counts as wasted already, as its reader seemed to have gone."""

    @property
    def jumps_on(self) -> bool:
        """Whether it has to read more, and most of what comes, to be believed again."""
        return self.jumps >= _HOPS

    @property
    def unread(self) -> ByteRange:
        """What was asked ahead and not come to."""
        return ByteRange(self.position, max(self.position, self.ahead) if self.asked else self.position)


class Streams:
    """The readers of one file, the latest first."""

    __slots__ = ("_hops", "_run", "_streams", "_worth")

    def __init__(self, worth: Worth | None = None) -> None:
        self._streams: list[Stream] = []
        self._hops = 0  # in a row
        self._run = 0  # how far, in bytes, those came at most that have hopped lately
        self._worth = worth or Worth()

    @property
    def forward(self) -> bool:
        """Whether the latest read is one of a reader that goes forward, and farther than those did that hopped."""
        return bool(self._streams) and self._streams[0].sequential and not self._expected_stop(self._streams[0])

    def end(self) -> list[ByteRange]:
        """Nobody reads any more; what was asked ahead in vain."""
        unread = [stream.unread for stream in self._streams if stream.unread.length]
        self._note(self._streams)
        self._streams.clear()
        return unread

    def settle(self) -> None:
        """Nobody reads just now: what was asked ahead of readers who have seen a beginning only counts as wasted, until
        they go on."""
        for stream in self._streams:
            unread = min(stream.unread.length, stream.asked)
            if unread and not stream.settled and stream.position - stream.begin <= LEAST_WINDOW_BYTES:
                self._worth.note(0, unread)
                stream.settled = unread

    def _note(self, streams: Iterable[Stream]) -> None:
        for stream in streams:
            self._goes_on(stream)
            wasted = min(stream.unread.length, stream.asked)
            self._worth.note(stream.asked - wasted, wasted)

    def _goes_on(self, stream: Stream) -> None:
        self._worth.take_back(stream.settled)
        stream.settled = 0

    def on_read(self, wanted: ByteRange, size_bytes: int, longest_window: int) -> ByteRange | None:
        """A range was read; what to bring in ahead of the next read, if anything."""
        believed = max(LEAST_WINDOW_BYTES, self._worth.allowed(longest_window))
        stream = self._stream_of(wanted, believed)
        stream.window = min(stream.window, longest_window)
        self._goes_on(stream)
        if wanted.start >= stream.position:
            touched = -(-wanted.stop // BLOCK_BYTES) * BLOCK_BYTES
            stream.read += max(0, touched - max(wanted.start // BLOCK_BYTES * BLOCK_BYTES, stream.touched))
            stream.touched = max(stream.touched, touched)
        else:
            stream.read += wanted.length  # late, or again
        stream.position = max(stream.position, wanted.stop)
        self._check_whole(stream, wanted)
        if not stream.sequential:
            return None
        stream.ahead = max(stream.ahead, wanted.stop)
        end = min(size_bytes, self._expected_stop(stream) or size_bytes)
        goal = min(end, stream.position + stream.window)
        step = min(STEP_BYTES, stream.window)  # a window that is smaller than a step would never be asked for, nor grow
        if goal - stream.ahead < min(step, end - stream.ahead):
            return None
        stop = goal if goal == end else max(goal // step * step, stream.ahead)
        if stop <= stream.ahead:
            return None
        ahead = ByteRange(stream.ahead, stop)
        stream.ahead = stop
        stream.asked += ahead.length
        has_read = READ_SHARE * (stream.position - stream.begin)
        stream.window = max(stream.window, min(stream.window * 2, longest_window, max(believed, has_read)))
        return ahead

    def _check_whole(self, stream: Stream, wanted: ByteRange) -> None:
        """One that leaves out more than it reads goes forward in steps, and is not read ahead of as one that does not
        (``strided``)."""
        passed = stream.position - stream.begin
        if 2 * passed <= 3 * stream.read if stream.jumps_on else passed <= 2 * stream.read + SLACK_BYTES:
            return
        if any(self._meet(stream, other) for other in self._streams if other is not stream):
            return  # several readers share what there is
        stream.sequential = False  # what it has left out counts as used: several readers at once may look like this
        stream.jumps += 1
        stream.begin, stream.window = wanted.start, RAMP_WINDOW_BYTES
        stream.read = max(wanted.length, stream.touched - wanted.start)

    @staticmethod
    def _meet(one: Stream, other: Stream) -> bool:
        return other.position > one.begin - SLACK_BYTES and other.begin < one.position + SLACK_BYTES

    def _note_hop(self, left: Stream) -> None:
        """A reader begins elsewhere than the one before it has been."""
        run = left.position - left.begin
        if run > STEP_BYTES:
            self._hops = self._run = 0
        else:
            self._hops += 1
            self._run = max(run, self._run // 2)

    def _expected_stop(self, stream: Stream) -> int:
        """Where a reader stops if it is one of those that have been hopping; 0: it is none, or has come farther."""
        hops = self._hops >= _HOPS and stream.begin > 0 and stream.position - stream.begin <= self._run
        return stream.begin + self._run if hops else 0

    def _stream_of(self, wanted: ByteRange, window_bytes: int) -> Stream:
        for stream in self._streams:
            reach = stream.position + max(SLACK_BYTES, stream.window if stream.sequential else 0)
            if stream.position - SLACK_BYTES <= wanted.start <= reach:
                believed = not stream.jumps_on or stream.read >= STEP_BYTES
                if not stream.sequential and wanted.start >= stream.position and believed:
                    stream.sequential = True
                    stream.window = min(stream.window, window_bytes)
                self._streams.remove(stream)
                self._streams.insert(0, stream)
                return stream
        at_start = wanted.start == 0
        if self._streams and not at_start:
            self._note_hop(self._streams[0])
        window = min(FIRST_WINDOW_BYTES if at_start else RAMP_WINDOW_BYTES, window_bytes)
        stream = Stream(wanted.start, wanted.start, wanted.stop, window, at_start and wanted.length >= HEAD_BYTES)
        self._streams.insert(0, stream)
        self._note(self._streams[STREAMS_PER_FILE:])
        del self._streams[STREAMS_PER_FILE:]
        return stream
