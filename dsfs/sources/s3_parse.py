"""Pages of ListObjectsV2 into the dictionaries that botocore makes of them, for 2 µs a key where it takes 85.

A listing of a million keys is a thousand such documents, and botocore's general parser takes most of the time of one.
Servers write the keys of a page alike, so a pattern made from the first one reads them all. A document that is in any
way not as expected goes to botocore's parser, which then says what it makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from xml.sax.saxutils import unescape

from aiobotocore.parsers import AioResponseParserFactory
from botocore.handlers import BUILTIN_HANDLERS
from botocore.utils import lowercase_dict

_BEFORE: Final = "before-parse.s3.*"
_PARSED: Final = "dsfs.listing"
_WANTED: Final = ("Key", "LastModified", "ETag", "Size")

_TEXT: Final = r"[^<>\x00-\x1f]*"
_OWNER: Final = rf"<Owner>(?:<\w+>{_TEXT}</\w+>)+</Owner>"
_FIRST_KEY = re.compile(rf"<Contents>((?:<\w+>{_TEXT}</\w+>|{_OWNER})+)</Contents>")
_PART = re.compile(rf"<({'|'.join(_WANTED)})>")
_OTHERS: Final = rf"(?:<(?!(?:{'|'.join(_WANTED)})>)\w+>{_TEXT}</\w+>|{_OWNER})*"  # not every object has a checksum
_PREFIX = re.compile(rf"<CommonPrefixes><Prefix>({_TEXT})</Prefix></CommonPrefixes>")
_REST = re.compile(  # once keys and prefixes are taken out
    r'\s*(?:<\?xml version="1\.0" encoding="(?:UTF|utf)-8"\s*\?>\s*)?<ListBucketResult(?: xmlns(?::\w+)?="[^"<&]*")*>'
    rf"((?:\s*<\w+(?:>{_TEXT}</\w+>|\s?/>))*)\s*</ListBucketResult>\s*"
)
_FIELD = re.compile(rf"<(\w+)(?:>({_TEXT})</(\w+)>|\s?/>)")
_ENTITY = re.compile("&(?:amp|lt|gt|quot|apos|#34|#39);")


def listings_parsed_here(session: Any) -> None:
    """Have the clients that a session will make parse pages of listings with this module."""
    # botocore's own hook here parses each document once more, to see whether it is an error; ours has to come first.
    session.register(_BEFORE, _parse_first)
    for event, handler, *_how in BUILTIN_HANDLERS:
        if event == _BEFORE:
            session.unregister(event, handler)
            session.register(event, handler)
    session.register_component("response_parser_factory", _Factory())


def _parse_first(response_dict: dict[str, Any], operation_model: Any, **_: object) -> None:
    if operation_model.name == "ListObjectsV2" and response_dict["status_code"] == 200:
        page = parsed_page(response_dict["body"])
        if page is not None:
            response_dict[_PARSED], response_dict["body"] = page, b""


class _Factory(AioResponseParserFactory):  # type: ignore[misc]  # the library has no types
    def create_parser(self, protocol_name: str) -> Any:
        return _Parser(super().create_parser(protocol_name))


class _Parser:
    """Asks the library's parser about everything but pages of a listing."""

    def __init__(self, general: Any) -> None:
        self._general = general

    async def parse(self, response: Mapping[str, Any], shape: Any) -> Any:
        page = response.get(_PARSED)
        if page is None:
            return await self._general.parse(response, shape)
        page["ResponseMetadata"] = {"HTTPStatusCode": 200, "HTTPHeaders": lowercase_dict(response["headers"])}
        return page


def parsed_page(body: bytes) -> dict[str, Any] | None:
    """What ``dsfs.sources.s3`` looks at in a page; None if it is not exactly like one."""
    try:
        return _page(body.decode())
    except ValueError:  # text that is no UTF-8, a character by number, a time or a size of another kind
        return None


def _page(text: str) -> dict[str, Any] | None:
    """Raises ValueError."""
    first = _FIRST_KEY.search(text)
    pattern = first and _pattern(tuple(_PART.findall(first[1])))
    parts = pattern.split(text) if pattern else [text]  # what is between two keys, and the groups of each
    between = _PREFIX.split("".join(parts[:: len(_WANTED) + 1]))
    rest = _REST.fullmatch("".join(between[::2]))
    fields = _FIELD.findall(rest[1]) if rest else []
    said = {name: _plain(value) for name, value, _end in fields}
    truncated = said.get("IsTruncated")
    if (
        any(end not in (name, "") for name, _value, end in fields)
        or len(said) != len(fields)
        or truncated not in ("true", "false")
        or not said.keys().isdisjoint(("Contents", "CommonPrefixes"))
    ):
        return None
    page: dict[str, Any] = {name: said[name] for name in ("EncodingType", "NextContinuationToken") if name in said}
    page["IsTruncated"] = truncated == "true"
    page["Contents"] = _contents(pattern, parts) if pattern else []
    page["CommonPrefixes"] = [{"Prefix": _plain(prefix)} for prefix in between[1::2]]
    return page


def _contents(pattern: re.Pattern[str], parts: list[str]) -> list[dict[str, Any]]:
    times: dict[str, datetime] = {}  # many keys of a page were written within one second
    columns = (parts[pattern.groupindex[name] :: len(_WANTED) + 1] for name in _WANTED)
    return [
        {
            "Key": _plain(key),
            "LastModified": times.get(time) or times.setdefault(time, _time(time)),
            "ETag": _plain(etag.replace("&quot;", '"').replace("&#34;", '"')),
            "Size": int(size),
        }
        for key, time, etag, size in zip(*columns, strict=True)
    ]


@lru_cache(maxsize=16)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str] | None:
    """Of a key with these parts in this order; None if one that is wanted is not there, or twice."""
    if sorted(names) != sorted(_WANTED):
        return None
    parts = _OTHERS.join(f"<{name}>(?P<{name}>{_TEXT})</{name}>" for name in names)
    return re.compile(f"<Contents>{_OTHERS}{parts}{_OTHERS}</Contents>")


def _plain(text: str) -> str:
    """Text without its entities. Raises ValueError for one that is not XML's own."""
    if "&" not in text:
        return text
    if "&" in _ENTITY.sub("", text):
        raise ValueError("a character by number, or no entity")
    return unescape(text, {"&quot;": '"', "&apos;": "'", "&#34;": '"', "&#39;": "'"})


def _time(text: str) -> datetime:
    """Raises ValueError, also for a time without its zone."""
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError("no time zone")
    return when
