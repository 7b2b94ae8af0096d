"""Sums over the rows of the index, kept beside them so that no start has to read a million rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from dsfs.cache.rows import Row


@dataclass(slots=True)
class Totals:
    """Bytes in rows: space of all objects, content by owner; space that all that is pinned takes once it is here, and
    content of it that is here, by the dataset that pins it."""

    all: int = 0
    by_owner: dict[str, int] = field(default_factory=dict)
    pinned_whole: int = 0
    pinned_by: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Totals:
        return Totals(self.all, dict(self.by_owner), self.pinned_whole, dict(self.pinned_by))

    def count(self, row: Row, sign: int) -> None:
        """Add a row (1), or take one away (-1)."""
        self.all += sign * row.space_bytes
        for owner in row.owners:
            self.by_owner[owner] = self.by_owner.get(owner, 0) + sign * row.content_bytes
        if row.pins:
            self.pinned_whole += sign * row.whole_bytes
            for dataset, _round in row.pins:
                self.pinned_by[dataset] = self.pinned_by.get(dataset, 0) + sign * row.content_bytes

    def noted(self) -> list[object]:
        return [self.all, self.by_owner, self.pinned_whole, {name: n for name, n in self.pinned_by.items() if n}]
