"""Hints as they are written down in a mount's runtime directory, so that the next server goes on with them.

Two files a hint: ID.order, the numbers of the files in the coming order, 8 bytes each, only ever appended to; ID.json,
renamed into place, says how many of them count and where the readers are.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import structlog

log = structlog.get_logger()

_NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Noted:
    """What is known of a hint, but for the order itself. ``whole``: there is no more of it to come."""

    id: str
    dataset: str
    files: int
    unknown: int
    unknown_paths: tuple[str, ...]
    position: int
    whole: bool


class HintNotes:
    """Blocks on the disk, and raises OSError where that refuses. Not for several threads at once."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def write(self, noted: Noted, more: Sequence[int] = ()) -> None:
        """Note how a hint stands; ``more`` are the numbers at its end that were not noted yet."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        path = f"{self._directory}/{noted.id}"
        if more:
            with open(f"{path}.order", "ab") as file:
                file.truncate((noted.files - len(more)) * _NUMBER_BYTES)  # of a try that failed
                file.write(array("q", more).tobytes())
        with open(f"{path}.json.new", "w", encoding="utf-8") as text:
            json.dump(asdict(noted), text)
        os.rename(f"{path}.json.new", f"{path}.json")

    def remove(self, hint_id: str) -> None:
        """It is not carried out any more."""
        for path in (f"{self._directory}/{hint_id}.json", f"{self._directory}/{hint_id}.order"):
            if os.path.exists(path):
                os.unlink(path)

    def read(self) -> list[tuple[Noted, array[int]]]:
        """All of them, the oldest first. What cannot be read is removed, and said."""
        if not os.path.isdir(self._directory):
            return []
        paths = [f"{self._directory}/{name}" for name in os.listdir(self._directory) if name.endswith(".json")]
        found: list[tuple[Noted, array[int]]] = []
        for path in sorted(paths, key=lambda path: os.stat(path).st_mtime_ns):
            try:
                found.append(_read(path))
            except (OSError, ValueError, TypeError) as error:
                log.warning("a hint of the server before cannot be read", file=path, reason=str(error))
                os.unlink(path)
        return found


def _read(path: str) -> tuple[Noted, array[int]]:
    with open(path, encoding="utf-8") as text:
        raw = json.load(text)
    noted = Noted(**{**raw, "unknown_paths": tuple(raw["unknown_paths"])})
    inos = array("q")
    if noted.files:
        with open(f"{path.removesuffix('.json')}.order", "rb") as file:
            inos.frombytes(file.read(noted.files * _NUMBER_BYTES))
    if len(inos) != noted.files:
        raise ValueError(f"{len(inos)} of {noted.files} files are noted")
    return noted, inos
