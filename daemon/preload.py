"""What a server has imported by the time that it is ready: which sources, for example. The next one starts with it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable

from daemon.settings import Settings
from dsfs.errors import ConfigError
from dsfs.manifest.uri import manifest_from_uri
from dsfs.sources.registry import SOURCES


def preload(settings: Settings) -> None:
    """Import what a server before this one has imported by the time that it was ready; if there was none, what the
    first one is going to need."""
    try:
        with open(_known(settings.runtime_dir), encoding="utf-8") as file:
            names: Iterable[str] = file.read().split()
    except FileNotFoundError:
        names = _needed_first(settings)
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:  # of another version, or what it needs has been removed: who needs it says so
            continue


def _needed_first(settings: Settings) -> Iterable[str]:
    """Here, as the next server then has it too."""
    yield "daemon.control.routes"
    if settings.source_uri is not None:
        try:
            manifest = manifest_from_uri(settings.source_uri, settings.source_options, base_dir=settings.base_dir)
        except ConfigError:  # the server says so
            return
        if builder := SOURCES[manifest.source.type].builder:
            yield builder.partition(":")[0]


def note_modules(runtime_dir: str) -> None:
    """Write down what is imported now, for the stand-by of the next server."""
    names = sorted(name for name in sys.modules if name.startswith(("daemon.", "dsfs.")))
    with open(_known(runtime_dir), "w", encoding="utf-8") as file:
        file.write("\n".join(names))


def _known(runtime_dir: str) -> str:
    return f"{runtime_dir}/modules"
