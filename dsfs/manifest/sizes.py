"""Sizes as people write them: ``500GiB``, ``10GB``, plain bytes, and ``80%`` of something."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from dsfs.errors import ConfigError
from dsfs.model import SIZE_MAX_BYTES

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,18})?) ?(?:([kmgtpe])(i?))?b?", re.IGNORECASE)
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%")


@dataclass(frozen=True, slots=True)
class Percent:
    """A part of a whole; ``value`` is more than 0 and at most 100."""

    value: float

    def of(self, total_bytes: int) -> int:
        """Bytes, rounded down."""
        return int(Decimal(str(self.value)) * total_bytes / 100)


def parse_size(text: str | int) -> int:
    """Bytes, more than 0. ``k M G T P E`` count in 1000, with ``i`` in 1024; ``B`` and upper case mean nothing.

    Raises ConfigError with a line that does not say where the text stood; the caller knows.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        size_bytes = text
    else:
        match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ConfigError('is not a size (write bytes, or a number and a unit such as "500GiB" or "10GB")')
        number, unit, binary = match.groups()
        factor = 1 if unit is None else (1024 if binary else 1000) ** ("kmgtpe".index(unit.lower()) + 1)
        size_bytes = int(Decimal(number) * factor)
    if not 0 < size_bytes <= SIZE_MAX_BYTES:
        raise ConfigError("must be more than 0 and less than 8 EiB (leave it out for the default)")
    return size_bytes


def parse_size_or_percent(text: str) -> int | Percent:
    """Bytes, or a percentage of whatever the caller measures. Raises ConfigError as ``parse_size`` does."""
    if not text.rstrip().endswith("%"):
        return parse_size(text)
    match = _PERCENT.fullmatch(text.strip())
    if match is None or not 0 < float(match[1]) <= 100:
        raise ConfigError('is not a percentage (write more than 0% and at most 100%, such as "80%")')
    return Percent(float(match[1]))


def size_text(size_bytes: float) -> str:
    """Bytes for people: 1.5 GiB."""
    number, unit = float(size_bytes), 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} B" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"
