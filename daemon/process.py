"""What this process is called, and in what order the kernel ends it for want of memory. The standard library only.

Both are asked for in /proc (man 5 proc), which a container may show read-only: then they are as they were.
"""

from __future__ import annotations

import contextlib
from typing import Final

LAST: Final = -999  # -1000 would be never: a group of nothing but keepers could then not be helped


def name_process(name: str) -> None:
    """What ``ps`` and ``top`` show, in at most 15 bytes: several of ours have one command line."""
    with contextlib.suppress(OSError):
        _write("/proc/self/comm", name)


def end_last() -> int:
    """Have the kernel end this process after all others when memory is short; the order that it had before.

    An order is an oom_score_adj. Lowering it takes CAP_SYS_RESOURCE, and children inherit it.
    """
    place = "/proc/self/oom_score_adj"
    with open(place, encoding="ascii") as file:
        before = int(file.read())
    if before > LAST:
        with contextlib.suppress(OSError):
            _write(place, str(LAST))
    return before


def end_in_order(pid: int, order: int) -> None:
    """Have the kernel end a child as if it had not inherited what ``end_last`` did."""
    with contextlib.suppress(OSError):  # it may have ended already
        _write(f"/proc/{pid}/oom_score_adj", str(order))


def _write(place: str, text: str) -> None:
    with open(place, "w", encoding="ascii") as file:
        file.write(text)
