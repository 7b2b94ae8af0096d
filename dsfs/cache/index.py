"""What the node tier holds, by object: space, owners, pins, order of last use. Can be rebuilt from ``objects/``.

Uses and sizes are collected in memory and written in one transaction a second: a transaction takes about as long as a
small object takes to be fetched. A row is in the class of its priority, or in that of what is pinned, which eviction
never looks at.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import islice
from typing import TypeVar

import structlog

from dsfs.cache.eviction import Cached
from dsfs.cache.marks import Marks
from dsfs.cache.pending import Change, joined, merged
from dsfs.cache.rows import Row, Rows
from dsfs.cache.totals import Totals
from dsfs.cache.uses import Uses

log = structlog.get_logger()

_TOTALS = "#totals"  # not a key of an object, which is 64 hex digits
_CLEAN = "#clean"
_FORMAT_NOTE = "#format"
_PRIORITIES = "#priorities"
_PINS_DONE = "#pins"
_FORMAT = 2
NOBODY = "-"
"""The owner of what was shown once, and is not any more."""
_LOWEST_PRIORITY = -(2**31)
_PINNED = "pinned"
_NOTED_S = 60.0
_NOTED_USES = 200_000
_PENDING_USES = 50_000
_SAVED_S = 300.0
_BATCH = 2_000  # rows in one transaction, when there may be a million

T = TypeVar("T")


class Index:
    """Safe to use from several threads. ``used_bytes`` and ``owner_bytes`` are kept exact in memory."""

    def __init__(self, directory: str) -> None:
        self.limit_bytes = 2**62
        """What the cache may use; kept up to date by whoever measures the disk."""
        self._rows = Rows(directory)
        self._lock = threading.Lock()  # guards everything below; never held while the disk is waited for
        self._flushing = threading.Lock()  # whoever writes rows; taken before _lock, never under it
        self._pending: dict[str, Change] = {}
        self._unflushed_bytes: Counter[str] = Counter()  # by owner: added since the last flush
        self._asked_for: Counter[str] = Counter()  # keys that are being brought because somebody wants them here
        self._noted: dict[str, tuple[str, ...]] = {}  # who used it in this minute, which need not be noted again
        self._noted_before: dict[str, tuple[str, ...]] = {}  # and in the one before
        self._noted_since_s = 0.0
        known = self._rows.noted(_FORMAT_NOTE) == _FORMAT
        if not known:
            self._rows.clear()
            self._rows.note(_FORMAT_NOTE, _FORMAT)
        self._totals = Totals(*(self._rows.noted(_TOTALS) or ()))
        self._priorities: dict[str, int] = self._rows.noted(_PRIORITIES) or {}
        self._pins_done: dict[str, str] = self._rows.noted(_PINS_DONE) or {}
        self._used_bytes = self._totals.all
        self._uses = Uses(directory)  # under _flushing
        self._saved_s = time.time()
        self.was_clean = known and bool(self._rows.noted(_CLEAN))
        """False: the last server did not end in order, and objects/ may hold what the index does not know."""
        self.is_whole = True
        """Whether all that lies there is known by now, as far as whoever looks for it tells."""
        self.before_close: Callable[[], object] = _nothing_to_do
        self._rows.forget([_CLEAN])

    @property
    def used_bytes(self) -> int:
        """Space of all objects, in bytes."""
        return self._used_bytes

    def owner_bytes(self, owner: str) -> int:
        """Bytes of files that are here and that this dataset has used; what two datasets use counts for both."""
        return self._totals.by_owner.get(owner, 0) + self._unflushed_bytes[owner]

    def add(self, key: str, size_bytes: int, content_bytes: int, owner: str) -> None:
        """Note that so many more bytes of an object are here, brought by this dataset: space, and content."""
        with self._lock:
            self._used_bytes += size_bytes
            pending = self._pending.setdefault(key, Change())
            pending.added_bytes += size_bytes
            pending.content_bytes += content_bytes
            if owner:
                self._note(key, owner, pending)
                self._unflushed_bytes[owner] += content_bytes

    def shrink(self, key: str, size_bytes: int, content_bytes: int) -> None:
        """Note that so many bytes of an object are gone, space and content, and the rest of it is not."""
        with self._lock:
            self._used_bytes -= size_bytes
            pending = self._pending.setdefault(key, Change())
            pending.added_bytes -= size_bytes
            pending.content_bytes -= content_bytes

    def use(self, key: str, owner: str) -> None:
        """Note that a dataset used an object just now: to the minute, as a row costs more to write than most reads."""
        if owner in self._noted.get(key, ()):
            return
        with self._lock:
            if len(self._pending) >= _PENDING_USES:
                return  # more than a flush can write: some of so many uses stand for all
            self._note(key, owner, self._pending.setdefault(key, Change()))

    def _note(self, key: str, owner: str, pending: Change) -> None:
        pending.owners.add(owner)
        noted = self._noted.get(key, ())
        if owner not in noted:
            pending.fresh = pending.fresh or (not noted and key not in self._noted_before)
            if len(self._noted) >= _NOTED_USES:
                self._noted.clear()
            self._noted[key] = (*noted, owner)

    @contextmanager
    def asked_for(self, key: str) -> Iterator[None]:
        """What comes of an object meanwhile is wanted here, though nobody has used it yet."""
        with self._lock:
            self._asked_for[key] += 1
        try:
            yield
        finally:
            self.ask_for([key])
            with self._lock:
                self._asked_for[key] -= 1
                if not self._asked_for[key]:
                    del self._asked_for[key]

    def ask_for(self, keys: Iterable[str]) -> None:
        """These are wanted here, if they are."""
        with self._lock:
            for key in keys:
                if key in self._pending or len(self._pending) < _PENDING_USES:
                    self._pending.setdefault(key, Change()).asked_for = True

    def remove(self, key: str) -> None:
        """Note that an object is gone. What is pinned stays so, and is kept when it comes again."""
        with self._lock:
            before = self._pending.get(key, Change())
            self._pending[key] = Change(removed=True, lost_bytes=before.lost_bytes + before.added_bytes)
            self._noted.pop(key, None)
            self._noted_before.pop(key, None)

    def flush(self, now_s: float) -> None:
        """Write what was noted since the last flush. Blocks on the disk.

        Raises OSError when the disk refuses; then nothing of it counts as written, and the next flush tries again.
        """
        with self._flushing:
            with self._lock:
                if abs(now_s - self._noted_since_s) >= _NOTED_S:
                    self._noted_before, self._noted = self._noted, {}
                    self._noted_since_s = now_s
                pending, self._pending = self._pending, {}
                coming = set(self._asked_for)
                unflushed_bytes = self._unflushed_bytes.copy()
            if not pending:
                return
            try:
                objects = len(self._rows)
                before, after = self._rewrite(
                    list(pending),
                    lambda rows: {key: merged(rows.get(key, Row()), change, now_s) for key, change in pending.items()},
                )
            except OSError:
                with self._lock:
                    self._pending = joined(pending, self._pending)
                raise
            asked_for = {key for key, change in pending.items() if change.asked_for or key in coming}
            self._uses.observe(pending, before, after, objects, self._totals.all, self.limit_bytes, asked_for)
            counted_bytes = sum(change.lost_bytes + change.added_bytes for change in pending.values())
            counted_bytes += sum(row.space_bytes for row in before.values())
            with self._lock:
                self._used_bytes += sum(row.space_bytes for row in after.values() if row is not None) - counted_bytes
                self._unflushed_bytes -= unflushed_bytes
                for key, row in after.items():
                    if row is None:  # used when it was not here: once it is, that has to be noted
                        self._noted.pop(key, None)

    def _rewrite(
        self, keys: list[str], change: Callable[[dict[str, Row]], Mapping[str, Row | None]]
    ) -> tuple[dict[str, Row], Mapping[str, Row | None]]:
        """Read rows, change them, write them and the sums, in one transaction: the rows before and after.

        Under ``_flushing``. Raises OSError.
        """
        totals = self._totals.copy()
        with self._rows.transact():
            before = self._rows.get(keys)
            after = change(before)
            for key, row in after.items():
                if key in before:
                    totals.count(before[key], -1)
                if row is not None:
                    totals.count(row, 1)
            self._rows.put(after, {key: self._class_of(row) for key, row in after.items() if row is not None})
            # What is in rows, not what is in use: after a crash, what came meanwhile is found in objects/.
            self._rows.note(_TOTALS, totals.noted())
        self._totals = totals
        return before, after

    # -- order and priority -----------------------------------------------------------------------------------------

    def _class_of(self, row: Row) -> str:
        return _PINNED if row.pins else _class_name(self._priority_of(row))

    def _priority_of(self, row: Row) -> int:
        return max((self._worth_to(owner) for owner in row.owners), default=0)

    def _worth_to(self, owner: str) -> int:
        return _LOWEST_PRIORITY if owner == NOBODY else self._priorities.get(owner, 0)

    def set_priority(self, owner: str, priority: int) -> None:
        """What a dataset's objects are worth from now on: those of lower priority go first. Blocks on the disk, and
        for long when it has changed. What two datasets use has the higher one. Raises OSError; then it has not changed,
        and whoever asks again moves all that is left."""
        with self._flushing:
            old = self._priorities.get(owner, 0)
            if old == priority:
                return
            self._priorities[owner] = priority
        try:
            self._reclass(owner)
            with self._flushing:
                self._rows.note(_PRIORITIES, self._priorities)
        except OSError:
            self._priorities[owner] = old
            raise

    def _reclass(self, owner: str) -> None:
        """Move what a dataset uses to the classes where it belongs now. Raises OSError."""
        for name in self._rows.classes():
            moving = (
                key for key, row in self._rows.of_class(name) if owner in row.owners and name != self._class_of(row)
            )
            for keys in _batches(moving):
                with self._flushing:
                    self._rewrite(keys, lambda rows: dict(rows))

    def victims_first(self) -> Iterator[Cached]:
        """Every object that may go, in the order in which it should: priority, then last use; as of the last flush."""
        for name in sorted(self._rows.classes()):
            if name != _PINNED:
                yield from (self._cached(key, row) for key, row in self._rows.of_class(name))

    def choose_victims(self, need_bytes: int, growing: str = "") -> list[Cached]:
        """What goes so that ``need_bytes`` become free, ``growing`` being what they are for; as of the last flush."""
        with self._flushing:
            keys = self._uses.newcomers(self.limit_bytes)
            rows = self._rows.get([*keys, growing] if growing else keys)
            with self._lock:
                asked_for = set(self._asked_for)
            return self._uses.choose_victims(
                (self._cached(key, rows[key]) for key in keys if key in rows and key != growing),
                (entry for entry in self.victims_first() if entry.key != growing),
                need_bytes,
                self._cached(growing, rows[growing]) if growing in rows else None,
                self.limit_bytes,
                asked_for,
            )

    def _cached(self, key: str, row: Row) -> Cached:
        return Cached(key, row.space_bytes, row.last_used_s, row.owners, row.content_bytes, self._priority_of(row))

    def everything(self) -> Iterator[Cached]:
        """Every object that is here, pinned ones too; as of the last flush."""
        for name in self._rows.classes():
            for key, row in self._rows.of_class(name):
                if row.space_bytes > 0:
                    yield self._cached(key, row)

    def share(self, owner: str, other: str) -> None:
        """Note that a dataset uses all that another one does. Blocks on the disk; raises OSError."""
        self.flush(time.time())
        # What is written meanwhile is met again: a row that says so already is not written again.
        everything = self.everything()
        for keys in _batches(each.key for each in everything if owner in each.owners and other not in each.owners):
            for key in keys:
                self.use(key, other)
            self.flush(time.time())

    def disown(self, owner: str, keys: Iterable[str]) -> None:
        """Note that a dataset does not show these objects any more: what nobody else uses is the first to go. Blocks on
        the disk; raises OSError."""

        def without(owners: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(each for each in owners if each != owner) or (NOBODY,)

        self.flush(time.time())
        for some in _batches(keys):
            with self._flushing:
                self._rewrite(
                    some, lambda rows: {key: row._replace(owners=without(row.owners)) for key, row in rows.items()}
                )

    def disown_others(self, owner: str, shown: Marks) -> None:
        """As ``disown``, of all but what a dataset shows."""
        self.disown(owner, (key for key in self._rows.of_owner(owner) if key not in shown))

    def __contains__(self, key: str) -> bool:
        """Whether something of an object was here at the last flush, or was brought in since. Blocks on the disk."""
        with self._flushing:
            change = self._pending.get(key)
            row = self._rows.get([key]).get(key)
        return (row is not None and row.space_bytes > 0) or (change is not None and change.added_bytes > 0)

    def known(self, key: str) -> tuple[int, int]:
        """Space and content of an object by what was noted until now, in bytes. Blocks on the disk; raises OSError."""
        with self._flushing:
            row = self._rows.get([key]).get(key, Row())
            with self._lock:
                change = self._pending.get(key, Change())
                if change.removed:
                    row = Row()
                return row.space_bytes + change.added_bytes, row.content_bytes + change.content_bytes

    # -- pins -------------------------------------------------------------------------------------------------------

    @property
    def pinned_whole_bytes(self) -> int:
        """Space that all that is pinned takes once it is here."""
        return self._totals.pinned_whole

    def pinned_bytes(self, dataset: str) -> int:
        """Bytes of files that are here and pinned by this dataset; as of the last flush."""
        return self._totals.pinned_by.get(dataset, 0)

    def pinned(self, key: str) -> bool:
        """Whether anybody holds an object, here or not. Blocks on the disk."""
        row = self._rows.get([key]).get(key)
        return row is not None and bool(row.pins)

    def held_bytes(self, owner: str, keys: Iterable[str]) -> int:
        """Bytes of these files that are here and that this dataset has used; as of the last flush."""
        held = 0
        for some in _batches(keys):
            held += sum(row.content_bytes for row in self._rows.get(some).values() if owner in row.owners)
        return held

    def unpinned_space(self, files: Iterable[tuple[str, int]]) -> int:
        """How much more space would be pinned if these were too: (key, space of the whole object) each."""
        more = 0
        for some in _batches(files):
            rows = self._rows.get([key for key, _space in some])
            more += sum(space for key, space in dict(some).items() if key not in rows or not rows[key].pins)
        return more

    def pin(self, dataset: str, number: int, files: Iterable[tuple[str, int]]) -> None:
        """Hold objects for a dataset, here or still to come: (key, space of the whole object) each. ``number`` is that
        of the round, by which ``unpin_others`` knows those that the dataset does not hold any more. Raises OSError."""
        for some in _batches(files):
            wanted = dict(some)

            def hold(rows: dict[str, Row], wanted: dict[str, int] = wanted) -> dict[str, Row | None]:
                return {
                    key: _held(rows.get(key, Row()), dataset, number)._replace(whole_bytes=space)
                    for key, space in wanted.items()
                }

            with self._flushing:
                self._rewrite(list(wanted), hold)
                self._uses.pinned(wanted)

    def unpin_others(self, dataset: str, number: int | None) -> None:
        """Let go of what a dataset held in other rounds than this one, or (None) of all of it. Raises OSError."""
        stale = (
            key
            for key, row in self._rows.of_class(_PINNED)
            if any(name == dataset and held != number for name, held in row.pins)
        )
        for keys in _batches(stale):
            with self._flushing:
                self._rewrite(keys, lambda rows: {key: _let_go(row, dataset) for key, row in rows.items()})

    def pins_done(self, dataset: str) -> str | None:
        """For what ``note_pins_done`` was told last; None after the index was lost."""
        return self._pins_done.get(dataset)

    def note_pins_done(self, dataset: str, what: str | None) -> None:
        """All objects that a dataset pins are held: remember of which revision, and by which pins. Raises OSError."""
        with self._flushing:
            done = {name: known for name, known in {**self._pins_done, dataset: what}.items() if known is not None}
            self._rows.note(_PINS_DONE, done)
            self._pins_done = done

    # -- end --------------------------------------------------------------------------------------------------------

    def save_sometimes(self, now_s: float) -> None:
        """Have a crash forget no more than some minutes of how often things were used. Raises OSError."""
        if abs(now_s - self._saved_s) >= _SAVED_S:
            self.save(now_s)

    def save(self, now_s: float) -> None:
        """Write down how often things were used. Raises OSError."""
        self._saved_s = now_s
        with self._flushing:
            self._uses.save()

    def close(self, now_s: float) -> None:
        """Flush, and say that this end was in order. When the disk refuses, or what lies in ``objects/`` was not looked
        at to its end, it was not, and the next start looks."""
        self.before_close()
        try:
            self.flush(now_s)
            if self.is_whole:
                self._rows.note(_CLEAN, True)
            self.save(now_s)
        except OSError as error:
            log.warning("index of the cache not written at its end, the next start looks again", reason=str(error))
        finally:
            self._rows.close()


def _nothing_to_do() -> None:
    return


def forget_clean(directory: str) -> None:
    """Have whoever opens this index next look at all that lies in ``objects/``. Raises sqlite3.Error, OSError."""
    with closing(Rows(directory)) as rows:
        rows.forget([_CLEAN])


def _held(row: Row, dataset: str, number: int) -> Row:
    others = tuple(pin for pin in row.pins if pin[0] != dataset)
    return row._replace(pins=(*others, (dataset, number)))


def _let_go(row: Row, dataset: str) -> Row | None:
    pins = tuple(pin for pin in row.pins if pin[0] != dataset)
    if not pins and row.space_bytes == 0:
        return None
    return row._replace(pins=pins, whole_bytes=row.whole_bytes if pins else 0)


def _class_name(priority: int) -> str:
    """Sorts as the priority does, which is a signed number of 32 bits."""
    return f"p{priority + 2**31:010d}"


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(items)
    while some := list(islice(remaining, _BATCH)):
        yield some
