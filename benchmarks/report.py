"""How benchmarks speak: what was found on standard output, its tables as Markdown, as RESULTS.md has them; how far they
are on standard error."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from datetime import date

from rich.console import Console

say = Console(soft_wrap=True, markup=False, emoji=False, highlight=False).print
progress = Console(soft_wrap=True, markup=False, emoji=False, highlight=False, stderr=True).print


class Table:
    """Said a row at a time, as it is measured."""

    def __init__(self, *columns: str) -> None:
        self.row(*columns)
        say("|" + "---|" * len(columns))

    def row(self, *cells: object) -> None:
        say(f"| {' | '.join(map(str, cells))} |")


def command_line(name: str, about: str | None) -> argparse.ArgumentParser:
    """``about``: the module's own description, printed as it stands. From here on SIGTERM ends a program as ^C does."""
    signal.signal(signal.SIGTERM, _end)
    return argparse.ArgumentParser(
        prog=f"python -m {name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _end(number: int, _frame: object) -> None:
    """So that nothing stays mounted."""
    signal.signal(number, signal.SIG_IGN)  # timeout(1) sends it twice
    sys.exit(128 + number)


def circumstances() -> str:
    """When and on what: what has to stand beside every table."""
    machine = f"Linux {platform.release()}, {os.cpu_count()} cores, {platform.machine()}"
    return f"{date.today()}, {machine}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
