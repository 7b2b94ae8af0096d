"""A list file → what it names. Text (a path or URL a line), JSON (a list of objects) or CSV (with a header).

Columns and fields: ``path`` or ``name`` (where it is shown), ``url`` (where it lies; without it ``path`` says that too,
below the list), ``size`` in bytes, ``sha256`` in hex, ``mtime`` (Unix seconds or ISO 8601).
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

from yarl import URL

from dsfs.errors import SourceUnsupported

FORMATS: Final = (".txt", ".json", ".csv")
_SAFE: Final = "/!$&'()*+,:=@~"  # as in ``http``
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a list. ``size`` in bytes and ``sha256`` in lower-case hex where the list has them."""

    path: str
    url: str
    size: int | None = None
    sha256: str = ""
    mtime_ns: int = 0


def format_of(url: str) -> str | None:
    """``.txt``, ``.json`` or ``.csv``, by the path of a URL; None for what is none of them."""
    path = urlsplit(url).path.lower()
    return next((ending for ending in FORMATS if path.endswith(ending)), None)


def parse_list(data: bytes, kind: str, url: str) -> list[Entry]:
    """All entries of the list at ``url``. Raises SourceUnsupported with the number of the line or entry.

    Paths are passed on as they are written, but for a leading ``./``: what cannot be shown the catalog skips.
    """
    base = urljoin(url, ".").partition("?")[0]
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    shown = url.partition("?")[0]
    entries: dict[str, Entry] = {}
    places: dict[str, int] = {}
    for place, row in _rows(text, kind, shown):
        try:
            entry = _entry(row, base)
        except ValueError as error:
            raise SourceUnsupported(f"{shown}: entry {place}: {error}") from None
        earlier = entries.setdefault(entry.path, entry)
        if earlier != entry:
            # Which of the two is meant nobody can know, and a guess would show the wrong bytes.
            raise SourceUnsupported(
                f"{shown}: entries {places[entry.path]} and {place} are one file and differ (name them by path and url)"
            )
        places.setdefault(entry.path, place)
    return list(entries.values())


def _rows(text: str, kind: str, shown: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Numbered from 1: lines of a text, objects of a JSON list, rows below the header of a CSV."""
    if kind == ".txt":
        for number, line in enumerate(text.split("\n"), 1):
            written = line.strip()
            if written and not written.startswith("#"):
                yield number, {"url" if _URL.match(written) else "path": written}
        return
    try:
        rows: Iterable[Any] = json.loads(text) if kind == ".json" else _csv_rows(text)
        if not isinstance(rows, list):
            raise ValueError("the outermost value is not a list")
    except (ValueError, csv.Error, RecursionError) as error:
        raise SourceUnsupported(f"{shown} is no {kind[1:].upper()} list ({error})") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise SourceUnsupported(f"{shown}: entry {number} is no object with path, size, sha256")
        yield number, row


def _csv_rows(text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    names = [name.strip().lower() for name in reader.fieldnames or ()]
    if not {"path", "name", "url"} & set(names):
        raise ValueError("its first line has no column path, name or url")
    reader.fieldnames = names
    return list(reader)


def _entry(row: Mapping[str, Any], base: str) -> Entry:
    path = _text(row, "path") or _text(row, "name")
    url = _text(row, "url")
    if not path and not url:
        raise ValueError("it has neither path nor url")
    if not url and _URL.match(path):
        path, url = "", path  # a list of `{"path": "https://…"}` means what it says
    while path.startswith("./"):
        path = path[2:]
    url = _checked(urljoin(base, url)) if url else base + quote(os.fsencode(path), safe=_SAFE)
    sha256 = _text(row, "sha256").lower().removeprefix("sha256:")
    if sha256 and not _SHA256.fullmatch(sha256):
        raise ValueError("its sha256 is not 64 hex digits")
    path = path or _path_of(url, base)
    if not path.strip("/"):
        raise ValueError("it names no file")
    return Entry(path, url, _size(row.get("size")), sha256, _time_ns(row.get("mtime")))


def _checked(url: str) -> str:
    """A URL that can be asked for, percent-encoded where it was not."""
    parsed = URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("its URL is not http:// or https://")
    if parsed.password is not None:
        raise ValueError("its URL carries a password (use netrc for other hosts)")
    return str(parsed.with_user(None).with_fragment(None))


def _path_of(url: str, base: str) -> str:
    """Where a URL without a path is shown: below the list at its place there, else under its host, as wget does.

    A query is left out: it may hold a signature.
    """
    plain = url.partition("?")[0]
    if plain.startswith(base):
        inside = plain[len(base) :]
    else:
        parts = urlsplit(plain)
        inside = f"{parts.netloc}{parts.path}"
    return "/".join(os.fsdecode(unquote_to_bytes(part)).replace("/", "_") for part in inside.split("/"))


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"its {key} is no text")
    return value if key in ("path", "name") else value.strip()


def _size(value: Any) -> int | None:
    if value in (None, ""):
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,19}\s*", value, re.ASCII):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError("its size is not a number of bytes")
    return value


def _time_ns(value: Any) -> int:
    """Unix nanoseconds; a time without a zone is UTC."""
    if value in (None, ""):
        return 0
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            moment = datetime.fromisoformat(str(value).strip())
        except ValueError:
            raise ValueError("its mtime is neither Unix seconds nor ISO 8601") from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not abs(seconds) < 2**33:  # the year 2242; also false for NaN
        raise ValueError("its mtime is out of range")
    return round(seconds * 10**6) * 1000
