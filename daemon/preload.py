"""What a server has imported by the time that it is ready: which sources, for example. The next one starts with it."""

from __future__ import annotations

import importlib
import sys


def preload(runtime_dir: str) -> None:
    """Import what a server before this one has imported by the time that it was ready: which sources, for example."""
    try:
        with open(_known(runtime_dir), encoding="utf-8") as file:
            names = file.read().split()
    except FileNotFoundError:
        return
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:  # of another version, or what it needs has been removed: who needs it says so
            continue


def note_modules(runtime_dir: str) -> None:
    """Write down what is imported now, for the stand-by of the next server."""
    names = sorted(name for name in sys.modules if name.startswith(("daemon.", "dsfs.")))
    with open(_known(runtime_dir), "w", encoding="utf-8") as file:
        file.write("\n".join(names))


def _known(runtime_dir: str) -> str:
    return f"{runtime_dir}/modules"
