"""What the options of a source tell apart, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dsfs.errors import ConfigError


def fingerprint(said: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of what JSON can hold: the same for the same, in whatever order."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


class NotHere(ConfigError):
    """This machine lacks what it takes; whatever the manifest says of it may be read on another one."""


class UnknownOption(ConfigError):
    """``key`` is an option that a source does not know; ``known`` are those that it does, with commas."""

    def __init__(self, source: str, key: str, known: str) -> None:
        are = "are" if "," in known else "is:"
        super().__init__(f"{source}: option {key[:60]!r} is not known (known {are} {known})")
        self.key = key
