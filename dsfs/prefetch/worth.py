"""What a policy's guesses were worth lately: one that wastes gets less."""

from __future__ import annotations

from dsfs.ranges import MiB

_BELIEVED_BYTES = 16 * MiB  # of use that every policy is credited with, so that it can begin and come back
_MEMORY_BYTES = 1024 * MiB  # after so much the past counts half


class Worth:
    """Bytes brought ahead that were used, and that were not."""

    __slots__ = ("used_bytes", "wasted_bytes", "wasted_total")

    def __init__(self) -> None:
        self.used_bytes = 0.0
        self.wasted_bytes = 0.0
        self.wasted_total = 0  # without forgetting

    def note(self, used_bytes: int, wasted_bytes: int) -> None:
        self.used_bytes += used_bytes
        self.wasted_bytes += wasted_bytes
        self.wasted_total += wasted_bytes
        if self.used_bytes + self.wasted_bytes > _MEMORY_BYTES:
            self.used_bytes, self.wasted_bytes = self.used_bytes / 2, self.wasted_bytes / 2

    def take_back(self, size_bytes: int) -> None:
        """So much of what counts as wasted was never brought."""
        taken = min(size_bytes, self.wasted_total)
        self.wasted_total -= taken
        self.wasted_bytes = max(0.0, self.wasted_bytes - taken)

    @property
    def share(self) -> float:
        """How much of what is brought is used, from 1 down to nearly 0."""
        used = self.used_bytes + _BELIEVED_BYTES
        return used / (used + self.wasted_bytes)

    def allowed(self, most: int) -> int:
        """How much of what a policy could ask for it gets: all while it wastes little, hardly anything at the end."""
        return max(1, int(most * min(1.0, self.share**2 * 1.25)))
