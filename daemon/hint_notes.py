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
        for suffix in ("json.new", "json", "order"):
            path = f"{self._directory}/{hint_id}.{suffix}"
            if os.path.exists(path):
                os.unlink(path)

    def read(self) -> list[tuple[Noted, array[int]]]:
        """All of them, the latest first. What cannot be read is removed, and said; what was never whole, removed."""
        if not os.path.isdir(self._directory):
            return []
        found: list[tuple[int, Noted, array[int]]] = []
        for hint_id in sorted({name.partition(".")[0] for name in os.listdir(self._directory)}):
            path = f"{self._directory}/{hint_id}.json"
            if not os.path.exists(path):  # its server ended before it was written, or while it was removed
                self.remove(hint_id)
                continue
            try:
                found.append((os.stat(path).st_mtime_ns, *_read(path)))
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("a hint of the server before cannot be read", file=path, reason=str(error))
                self.remove(hint_id)
        found.sort(key=lambda each: each[0], reverse=True)
        return [(noted, inos) for _written_ns, noted, inos in found]


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
