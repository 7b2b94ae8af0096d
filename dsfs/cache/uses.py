"""What eviction goes by beside the rows: what came last, which datasets are idle, how often things were used lately."""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterable, Mapping

from dsfs.cache.eviction import ASKED_FOR_USES, WINDOW_SHARE, Activity, Cached, Window, Worth, choose_victims
from dsfs.cache.frequency import Frequencies
from dsfs.cache.pending import Change
from dsfs.cache.rows import Row

_FREQUENCIES = "frequencies"


class Uses:
    """Not for several threads at once. ``limit_bytes`` is always what the cache may use now."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._window = Window()
        self._activity = Activity()
        self._frequencies = Frequencies(_load(directory))

    def observe(
        self,
        pending: Mapping[str, Change],
        before: Mapping[str, Row],
        after: Mapping[str, Row | None],
        objects: int,
        here_bytes: int,
        limit_bytes: int,
        asked_for: Collection[str] = (),
    ) -> None:
        """What happened, and the rows of that before and after; of how many ``objects`` that take ``here_bytes``. Those
        that were ``asked_for`` are wanted here before anybody uses them."""
        share_bytes = limit_bytes * WINDOW_SHARE
        for key, change in pending.items():
            if change.fresh:
                self._frequencies.count(key, objects)
            for owner in change.owners:
                self._activity.used(owner)
            self._activity.brought(max(0, change.added_bytes))
            row = after[key]
            new = change.removed or key not in before or before[key].space_bytes == 0
            if row is None or row.pins or not 0 < row.space_bytes <= share_bytes:
                self._window.drop(key)
            elif new or key in self._window:
                self._window.put(key, row.space_bytes, asked_for=key in asked_for)
        self._window.settle(here_bytes, limit_bytes)

    def pinned(self, keys: Iterable[str]) -> None:
        """What is pinned need not fight for its place."""
        for key in keys:
            self._window.drop(key)

    def newcomers(self, limit_bytes: int) -> list[str]:
        """Those that the window has no room for, oldest first."""
        return list(self._window.beyond(int(limit_bytes * WINDOW_SHARE)))

    def choose_victims(
        self,
        newcomers: Iterable[Cached],
        others: Iterable[Cached],
        need_bytes: int,
        growing: Cached | None,
        limit_bytes: int,
        asked_for: Collection[str] = (),
    ) -> list[Cached]:
        """Objects to give up until ``need_bytes`` are covered. ``others`` may have what is in the window among them;
        ``growing`` is the object that wants the room, if it is here. ``asked_for`` are those of them that are just
        coming."""

        def worth(entry: Cached) -> Worth:
            if entry.key in asked_for or self._window.asked_for(entry.key):
                return Worth(entry.priority, active=True, uses=ASKED_FOR_USES)
            active = not self._activity.idle(entry.owners, limit_bytes)
            return Worth(entry.priority, active, self._frequencies.of(entry.key))

        too_large = growing is not None and growing.cached_bytes > limit_bytes * WINDOW_SHARE
        choice = choose_victims(
            newcomers,
            (entry for entry in others if entry.key not in self._window),
            need_bytes,
            worth,
            growing if too_large else None,
        )
        for key in choice.settled:
            self._window.drop(key)
        return choice.victims

    def save(self) -> None:
        """Write down how often things were used, which a restart keeps. Raises OSError."""
        temporary = f"{self._directory}/{_FREQUENCIES}.new"
        with open(temporary, "wb") as file:
            file.write(zlib.compress(self._frequencies.table, 1))
        os.rename(temporary, f"{self._directory}/{_FREQUENCIES}")


def _load(directory: str) -> bytes | None:
    """How often things were used before; None when that is not known, which costs hits and nothing else."""
    try:
        with open(f"{directory}/{_FREQUENCIES}", "rb") as file:
            return zlib.decompress(file.read())
    except (OSError, zlib.error):
        return None
