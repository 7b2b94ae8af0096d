"""Options and Secret of an HTTP dataset → headers and credentials; which options are of ours.

Options that are not known here are sent as headers, as BaizeAI/dataset documents.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import structlog

from dsfs.errors import ConfigError, one_line
from dsfs.manifest.secret_keys import headers_in

log = structlog.get_logger()

_OWN_OPTIONS: Final = frozenset({"syncMode", "list", "archive"})
# What a header must not do here: change which bytes come, or under which framing.
_RESERVED_HEADERS: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "host", "if-match", "if-none-match", "if-range"}
    | {"if-modified-since", "if-unmodified-since", "range", "te", "transfer-encoding", "upgrade", "expect"}
)
_TOKEN_CHARACTERS: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def headers_of(options: Mapping[str, str]) -> dict[str, str]:
    """The options that are headers. Raises ConfigError."""
    headers = {key: value for key, value in options.items() if key not in _OWN_OPTIONS}
    for key, value in headers.items():
        if not key or not set(key) <= _TOKEN_CHARACTERS or not value.isprintable() or not value.isascii():
            raise ConfigError(f"HTTP: option {key!r} cannot be sent as a header (use ASCII letters, digits and -)")
        if key.lower() in _RESERVED_HEADERS:
            raise ConfigError(f"HTTP: option {key!r} is a header that dsfs sets itself (leave it out)")
    return headers


def authorization_of(credentials: Mapping[str, str]) -> str | None:
    """The Authorization header: a token before a user's name and password. Raises ConfigError."""
    if token := credentials.get("token"):
        authorization = f"Bearer {token}"
    elif credentials.get("username") or credentials.get("password"):
        pair = f"{credentials.get('username', '')}:{credentials.get('password', '')}"
        authorization = f"Basic {b64encode(pair.encode()).decode()}"
    else:
        return None
    if not (authorization.isascii() and authorization.isprintable()):
        raise ConfigError("HTTP: the token in the Secret is not plain ASCII text (check it for stray characters)")
    return authorization


def secret_headers_of(credentials: Mapping[str, str], what: str) -> dict[str, str]:
    """The keys of the Secret that are headers to send. What cannot be sent is passed over: it may be for others.

    ``what`` is for people: the source that they are sent to.
    """
    headers, refused = headers_in(credentials)
    for key, why in refused.items():
        _say_once(what, one_line(key, 60), why)
    return headers


@lru_cache(maxsize=1024)  # a source is built for each round
def _say_once(what: str, header: str, why: str) -> None:
    log.warning("a header in the Secret is not sent", source=what, header=header, reason=why)


def flag(options: Mapping[str, str], name: str) -> bool:
    """An option that is true or false; not given or empty is false. Raises ConfigError."""
    value = options.get(name, "").strip().lower()
    if value not in ("", "true", "false"):
        raise ConfigError(f"HTTP: option {name} must be true or false")
    return value == "true"
