"""Whether an interrupted request should end: a reader that is to die must not wait, one that is only profiled must."""

from __future__ import annotations

import signal

_ENDS = {signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGABRT}


def wants_out(pid: int) -> bool:
    """Whether one of the signals that ask a process to end is pending for this thread.

    The kernel sends FUSE_INTERRUPT for any signal, and EINTR, once answered, is not restarted: a timer or a profiler
    would break reads that only take a little longer. Who cannot be looked at (another pid namespace) gets its EINTR.
    """
    pending = 0
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith(("SigPnd:", "ShdPnd:")):
                    pending |= int(line.split()[1], 16)
    except (OSError, ValueError):
        return True
    return any(pending >> (number - 1) & 1 for number in _ENDS)
