"""What a source says to send for a range, and how its answer is judged; ``sources.wire`` and the courier carry it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

from dsfs.model import SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.timeouts import Timeouts
from dsfs.sources.wire_head import Head

Proof = tuple[tuple[str, tuple[str, ...]], ...]
"""Header names in lower case, each with the values of which it must have one; "" is no such header."""


class NotForWire(Exception):
    """This answer is not read here; nothing of it was given to anybody. The text says why."""


@dataclass(frozen=True, slots=True)
class WireRequest:
    """One range of one object, ready to be sent.

    ``head`` is the request without its end; it may hold credentials, so it is in no message. ``judge`` raises the
    SourceError behind an answer unless its version is the one that was listed, or NotForWire.
    """

    host: str
    port: int
    head: bytes
    what: str
    size: int
    judge: Callable[[Head], None]
    timeouts: Timeouts
    proof: Proof | None = None
    """What headers of a plain answer prove that the body is of the listed version; None: only ``judge`` can tell."""
    tells: str = ""
    """Whose headers may tell what the whole object hashes to: "http" or "amz" (``sources.told_digests``)."""

    def __repr__(self) -> str:
        return f"WireRequest({self.what})"


@runtime_checkable
class WireSource(Protocol):
    """A source that can say what to send for a range."""

    def at_once(self) -> int | None:
        """How many requests its server should get at once, as far as is known; None: as many as it answers well."""

    def asking(self, obj: SourceObject, wanted: ByteRange) -> WireRequest | None:
        """From any thread, without waiting for anything. None: use ``read`` (this time)."""


def as_wire(source: object) -> WireSource | None:
    """The source, if it is one of those."""
    return source if _is_wire(type(source)) else None  # type: ignore[return-value, arg-type]  # a type is hashable


def at_once_of(source: object) -> int | None:
    """See ``WireSource``; None of other sources too."""
    wire = as_wire(source)
    return None if wire is None else wire.at_once()


@cache  # 20 µs each time, otherwise
def _is_wire(kind: type) -> bool:
    return issubclass(kind, WireSource)
