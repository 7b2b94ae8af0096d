"""What /proc says of a process: processor time, memory, descriptors."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def running(*words: str) -> list[int]:
    """The processes whose command line has all of these in it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and all(word in (entry / "cmdline").read_text() for word in words):
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended
    return found


def name_of(pid: int) -> str:
    """What it calls itself; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def cpu_s(*pids: int) -> tuple[float, float]:
    """Of all of them together, in user mode and in the kernel."""
    user = system = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system = user + int(fields[11]), system + int(fields[12])
    return user / _TICKS, system / _TICKS


def memory_bytes(pid: int, what: str = "VmRSS") -> int:
    """A line of its status (``VmHWM``: the most there ever was, ``RssAnon``: what is no page of a file), or ``Pss``."""
    table = "smaps_rollup" if what == "Pss" else "status"
    for line in Path(f"/proc/{pid}/{table}").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} says nothing of its {what}: it has ended")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
