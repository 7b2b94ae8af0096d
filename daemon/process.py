"""What this process is called, and when the kernel ends it: for want of memory, with its parent. Standard library only.

Names and orders are asked for in /proc (man 5 proc), which a container may show read-only: then they are as they were.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from typing import Final

LAST: Final = -999  # -1000 would be never: a group of nothing but keepers could then not be helped

_REAPED_S = 1.0
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


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


def end_with(parent: int) -> None:
    """Have the kernel send this process SIGTERM when its parent ends, even one that is killed.

    More exactly, when the thread ends that started this process; a parent of one thread only will do.
    """
    _ask_for_end()
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_reaper(reaper: int) -> None:
    """As ``end_with``, for an orphan that gets this parent just now; nothing where it gets another."""
    until_s = time.monotonic() + _REAPED_S
    while os.getppid() != reaper:
        if time.monotonic() > until_s:
            return
        time.sleep(0.01)
    _ask_for_end()


def _ask_for_end() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _write(place: str, text: str) -> None:
    with open(place, "w", encoding="ascii") as file:
        file.write(text)
