"""What happened to an object since the index was last written: how two of it join, and what they make of its row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dsfs.cache.rows import Row


@dataclass(slots=True)
class Change:
    """What happened to one object since the last flush: perhaps a removal, then perhaps more."""

    removed: bool = False
    lost_bytes: int = 0  # of what was added and removed again between two flushes
    added_bytes: int = 0
    content_bytes: int = 0  # of files, without what a disk and a map add
    owners: set[str] = field(default_factory=set)
    fresh: bool = False  # used, and not a minute ago too: a file that is read for an hour is used once
    asked_for: bool = False  # brought because somebody wants to have it here


def joined(first: dict[str, Change], then: dict[str, Change]) -> dict[str, Change]:
    """What happened to each object, from two times that follow each other."""
    both = dict(first)
    for key, change in then.items():
        before = first.get(key)
        if before is not None:
            lost_bytes = before.lost_bytes + change.lost_bytes
            if change.removed:
                lost_bytes += before.added_bytes
                change = replace(change, lost_bytes=lost_bytes)
            else:
                change = Change(
                    before.removed,
                    lost_bytes,
                    before.added_bytes + change.added_bytes,
                    before.content_bytes + change.content_bytes,
                    before.owners | change.owners,
                    before.fresh or change.fresh,
                    before.asked_for or change.asked_for,
                )
        both[key] = change
    return both


def merged(row: Row, change: Change, now_s: float) -> Row | None:
    """A row after what happened, None when nothing is left to know."""
    if change.removed:
        row = row._replace(space_bytes=0, content_bytes=0, owners=())
    space_bytes = row.space_bytes + change.added_bytes
    if space_bytes <= 0:  # a use of what was evicted meanwhile; or more was taken back than was known
        return row._replace(space_bytes=0, content_bytes=0, owners=()) if row.pins else None
    content_bytes = max(0, row.content_bytes + change.content_bytes)
    owners = tuple(sorted(change.owners.union(row.owners)))
    return row._replace(space_bytes=space_bytes, content_bytes=content_bytes, owners=owners, last_used_s=now_s)
