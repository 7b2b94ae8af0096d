"""Log lines: one event each, on stderr, as key=value or JSON; secrets are blotted out wherever they would appear."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog

Event = MutableMapping[str, Any]

_SECRET_KEYS = re.compile(r"(?i)(secret|password|passwd|token|authorization|credential|access.?key|signature)")
_SECRET_TEXT = re.compile(
    r"(?i)((?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|access_token|token|password)=)[^&\s'\"]+"
    r"|(://[^/\s:@]+:)[^/\s@]+(@)|(authorization:\s*\S+\s+)\S+|(bearer\s+)\S+"
)
_REPEAT_S = 60.0
_KNOWN_CAUSES = 1000


def redact(text: str) -> str:
    """A text without what looks like a credential in it."""
    return _SECRET_TEXT.sub(lambda m: (m[1] or m[2] or m[4] or m[5]) + "***" + (m[3] or ""), text)


def _redact_event(_logger: object, _method: str, event: Event) -> Event:
    for key, value in event.items():
        if _SECRET_KEYS.search(key):
            event[key] = "***"
        elif isinstance(value, str):
            event[key] = redact(value)
    return event


class OncePerCause:
    """Warnings, and requests that ended in an errno, come once a minute for each cause: the event, the dataset, the
    errno or error. The next one carries how many were held back."""

    def __init__(self) -> None:
        self._last: dict[tuple[object, ...], tuple[float, int]] = {}

    def __call__(self, _logger: object, method: str, event: Event) -> Event:
        if method != "warning" and "errno" not in event:
            return event
        cause = (event.get("event"), event.get("dataset"), event.get("errno"), event.get("error"))
        now_s = time.monotonic()
        last_s, held_back = self._last.get(cause, (-_REPEAT_S, 0))
        if now_s - last_s < _REPEAT_S:
            self._last[cause] = (last_s, held_back + 1)
            raise structlog.DropEvent
        if len(self._last) >= _KNOWN_CAUSES:
            self._last.clear()
        self._last[cause] = (now_s, 0)
        if held_back:
            event["held_back"] = held_back
        return event


class _Library(logging.Formatter):
    """What libraries say through the standard library's loggers, in the form of our own lines."""

    def __init__(self, render: structlog.typing.Processor) -> None:
        super().__init__()
        self._render = render
        self._stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)

    def format(self, record: logging.LogRecord) -> str:
        event: Event = {"level": record.levelname.lower(), "event": record.getMessage(), "logger": record.name}
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        event = self._stamp(None, record.levelname.lower(), event)
        return str(self._render(None, record.levelname.lower(), _redact_event(None, "", event)))


class _Output(io.TextIOBase):
    """Standard error, which may be a file on a full disk, or a pipe that nobody reads any more: a line that cannot be
    written is lost, and costs no more than that."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), text.encode(errors="backslashreplace"))
        return len(text)


def _renderer(log_format: str) -> structlog.typing.Processor:
    if log_format == "json":
        return structlog.processors.JSONRenderer(serializer=json.dumps, default=str)
    return structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)


def configure(*, debug: bool, log_format: str = "console") -> None:
    """Set up logging for this process, in one of settings.LOG_FORMATS. Libraries are heard from warning on."""
    render = _renderer(log_format)
    output = cast("TextIO", _Output())  # it is one as far as it is used, to write to
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            OncePerCause(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact_event,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(_Library(render))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
