"""Durations as people write them: ``30s``, ``2m``, ``500ms``, or plain seconds."""

from __future__ import annotations

import re

from dsfs.errors import ConfigError

DURATION_MAX_S = 10 * 365 * 86400.0  # ten years: what is longer is a slip of the keyboard

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds, more than 0. Raises ConfigError with a line that does not say where the text stood; the caller knows."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError('is not a duration (write a number and ms, s, m, h or d, such as "30s" or "2m")')
    number, unit = match.groups()
    seconds = float(number) * _SECONDS[unit or "s"]
    if not 0 < seconds <= DURATION_MAX_S:
        raise ConfigError("must be more than 0 and at most ten years")
    return seconds
