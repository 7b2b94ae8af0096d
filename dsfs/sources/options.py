"""What is wrong with the options of a source."""

from __future__ import annotations

from dsfs.errors import ConfigError


class UnknownOption(ConfigError):
    """``key`` is an option that a source does not know; ``known`` are those that it does, with commas."""

    def __init__(self, source: str, key: str, known: str) -> None:
        are = "are" if "," in known else "is:"
        super().__init__(f"{source}: option {key[:60]!r} is not known (known {are} {known})")
        self.key = key
