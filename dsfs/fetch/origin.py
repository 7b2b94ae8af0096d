"""A source as the fetcher sees it: who reads through it, how it did lately, how it is counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import trio

from dsfs import metrics
from dsfs.errors import (
    RetryLater,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnsupported,
)
from dsfs.fetch.entitlement import Entitlement
from dsfs.fetch.lateness import Lateness
from dsfs.model import SourceObject, Tier, object_key
from dsfs.sources.base import Source

T = TypeVar("T")


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class LastError:
    """What went wrong last, and when (on trio's clock)."""

    error: SourceError
    heard_s: float


class Origin:
    """One dataset's source. Belongs to the file side, but for ``source``."""

    def __init__(
        self,
        source: Source,
        namespace: str,
        dataset: str,
        *,
        quota_bytes: int | None = None,
        key_prefix: str = "",
        shared_area: str = "",
    ) -> None:
        self.source = source
        self._held: Counter[Source] = Counter()
        self.shared_area = shared_area
        """Which part of the shared tier its bytes go through; empty: none."""
        self.quota_bytes = quota_bytes
        self.first_range: trio.Event | None = None
        """Set once the first range of a large file was answered; None: nobody has asked for one."""
        self.rangeless_until_s = 0.0
        """Until when (trio's clock) its server is known to ignore ranges."""
        self.unkept_until_s = 0.0
        """Until when (trio's clock) the node tier is known to have no room for what it brings."""
        self.namespace = namespace
        self.dataset = dataset
        self.id = f"{namespace}/{dataset}"
        self._key_prefix = key_prefix
        self.wrong_content: str | None = None
        """The path of a large file that was not what its source says, until it has come right."""
        self.last_error: LastError | None = None
        self.entitlement = Entitlement()
        self.lateness = Lateness()
        self.read_last: RemoteFile | None = None
        """What somebody read from the cache; of this a byte is asked for when it must be known whether he still may."""
        self.renew: Callable[[], Awaitable[bool]] = _cannot_renew
        """Called when the origin refuses: builds ``source`` anew if its credentials have changed, and says whether."""
        self._origin_bytes = metrics.ORIGIN_READ_BYTES.labels(namespace, dataset)
        self._shared_bytes = metrics.SHARED_READ_BYTES.labels(namespace, dataset)
        self._seconds = metrics.ORIGIN_REQUEST_SECONDS.labels(namespace, dataset)
        self._outcomes = {
            outcome: metrics.ORIGIN_REQUESTS.labels(namespace, dataset, outcome) for outcome in metrics.OUTCOMES
        }
        self._read = {tier: metrics.READ_BYTES.labels(namespace, dataset, tier) for tier in Tier}
        self.kernel_opened_bytes = metrics.KERNEL_OPENED_BYTES.labels(namespace, dataset)

    def key_of(self, path: str, version_tag: str) -> str:
        """What the cache calls a file: the same as the dataset does that it is borrowed from."""
        return object_key(self.source.identity, self._key_prefix + path, version_tag)

    @contextmanager
    def held(self) -> Iterator[Source]:
        """``source``, for a call of it: until that is over ``in_use`` says so, even if another has taken its place."""
        source = self.source
        self._held[source] += 1
        try:
            yield source
        finally:
            self._held[source] -= 1
            if not self._held[source]:
                del self._held[source]

    def in_use(self, source: Source) -> bool:
        """Whether somebody may still call it."""
        return source is self.source or source in self._held

    def may_hold(self, quota_bytes: int | None) -> None:
        """From now on the node tier keeps so much of it; None: as much as there is room for."""
        self.quota_bytes = quota_bytes
        self.unkept_until_s = 0.0

    @property
    def is_rangeless(self) -> bool:
        """Whether its server is known to ignore ranges."""
        return trio.current_time() < self.rangeless_until_s

    @property
    def is_kept(self) -> bool:
        """Whether the node tier has taken what came last, as far as is known."""
        return trio.current_time() >= self.unkept_until_s

    def count_read(self, tier: Tier, size_bytes: int) -> None:
        """So many bytes went to the kernel, from there."""
        self._read[tier].inc(size_bytes)

    def count_fetched(self, size_bytes: int) -> None:
        """So many bytes came from the source."""
        self._origin_bytes.inc(size_bytes)

    def count_hedged(self, second: bool) -> None:
        """A request was late and sent once more, and this was the faster of the two."""
        metrics.HEDGED_REQUESTS.labels(self.namespace, self.dataset, "second" if second else "first").inc()

    def count_shared(self, size_bytes: int) -> None:
        """So many bytes came from the shared tier."""
        self._shared_bytes.inc(size_bytes)

    def note_content(self, path: str, *, right: bool) -> None:
        """A large file was compared with the hash that the source has of it."""
        if not right:
            self.wrong_content = path
        elif self.wrong_content == path:
            self.wrong_content = None

    async def timed(self, call: Callable[[], Awaitable[T]], too_late: Callable[[], bool] = _never) -> T:
        """One request: counted, timed, and its error remembered. ``too_late`` tells of one that was ended whether its
        time was over: an origin that hangs is no reader that has gone."""
        started_s = time.perf_counter()
        try:
            result = await call()
        except SourceError as error:
            self.note_failed(error, started_s)
            raise
        except BaseException:
            self._count_request("timeout" if too_late() else "cancelled", started_s)
            raise
        self.note_answered(started_s)
        return result

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What nobody reads for, as one request: all of a listing, a question for a hash. Not timed: thousands of pages
        would be the slowest request there is. Its error is not remembered either: who asks knows what that means."""
        outcome: str | None = "cancelled"
        try:
            yield
            outcome = "ok"
        except SourceUnsupported:
            outcome = None  # it is known without asking: of a type that is never read, say
            raise
        except SourceError as error:
            outcome = _outcome_of(error)
            raise
        finally:
            if outcome is not None:
                self._outcomes[outcome].inc()

    def no_answer(self, within_s: float) -> SourceTimeout:
        """What to raise when there was none in this time."""
        return SourceTimeout(f"{self.source.uri}: no answer within {within_s:g} s")

    def note_answered(self, started_s: float) -> None:
        """A request that was begun then (time.perf_counter) brought what was asked for."""
        self.last_error = None
        self._count_request("ok", started_s)

    def note_failed(self, error: SourceError, started_s: float) -> None:
        """A request that was begun then came to nothing."""
        self.note_error(error)
        self._count_request(_outcome_of(error), started_s)

    def _count_request(self, outcome: str, started_s: float) -> None:
        self._outcomes[outcome].inc()
        self._seconds.observe(time.perf_counter() - started_s)

    def note_error(self, error: SourceError) -> None:
        self.last_error = LastError(error, trio.current_time())


async def _cannot_renew() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One object that can be fetched: what the cache calls it and where it comes from."""

    key: str
    size_bytes: int
    obj: SourceObject
    origin: Origin


def _outcome_of(error: SourceError) -> str:
    kinds = (
        (SourceRefused, "refused"),
        (SourceMissing, "missing"),
        (SourceChanged, "changed"),
        (SourceTimeout, "timeout"),
        (RetryLater, "later"),
    )
    return next((outcome for kind, outcome in kinds if isinstance(error, kind)), "failed")
