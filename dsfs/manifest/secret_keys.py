"""Which keys the Secret of a dataset may have: those of BaizeAI/dataset, and what some of our sources need besides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from dsfs.errors import ConfigError, one_line
from dsfs.manifest.credentials import HEADERS_IN_SECRETS, is_credential_name
from dsfs.manifest.schema import SourceType
from dsfs.manifest.secrets import VALUE_MAX_BYTES

KEYS_OF: Final[Mapping[SourceType, tuple[str, ...]]] = {
    SourceType.S3: ("access-key", "secret-key", "session-token", "sse-customer-key"),
    SourceType.HTTP: ("username", "password", "token"),
    SourceType.GIT: ("username", "password", "token", "ssh-privatekey", "ssh-privatekey-passphrase"),
    SourceType.HUGGING_FACE: ("token",),
    SourceType.MODEL_SCOPE: ("token",),
    SourceType.HADOOP: ("username", "password", "token"),
    SourceType.FSSPEC: (
        "username",
        "password",
        "token",
        "access-key",
        "secret-key",
        "service-account",
        "service-account-key",
    ),
}
"""What each type of source looks for; the types that are not here read without a credential. HTTP: and headers."""

_HEADER: Final = re.compile(
    r"[Xx]-[A-Za-z0-9-]+|Authorization|Cookie|Api-Key|Ocp-Apim-Subscription-Key"
    r"|(PRIVATE|JOB|DEPLOY)-TOKEN|(Private|Job|Deploy)-Token"
)


def is_header(key: str) -> bool:
    """Whether a key of the Secret of an HTTP dataset is the name of a header to send: ``X-API-Key``, ``Cookie``.

    A Secret may be another program's as well, and what is for that must not be sent: so only headers by which sites are
    known to take a credential, in their usual letters. A header that chooses what is answered is none of them: as an
    option it is part of what the source is, from a Secret it would not be.
    """
    return _HEADER.fullmatch(key) is not None and is_credential_name(key)


def headers_in(values: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The headers that a Secret of an HTTP dataset has to send, and of those that cannot be sent why."""
    headers: dict[str, str] = {}
    why: dict[str, str] = {}
    for key, value in values.items():
        if not value or not is_header(key):
            continue
        if key == "Authorization" and any(values.get(other) for other in KEYS_OF[SourceType.HTTP]):
            why[key] = "is made of its token, or username and password, too (leave one out)"
        elif any(key.lower() == other.lower() for other in headers):
            why[key] = "is there in other letters too (leave one out)"
        elif not (value.isascii() and value.isprintable()):
            why[key] = "is not plain ASCII text (check it for stray characters)"
        else:
            headers[key] = value
    return headers, why


def check_secret_values(values: Mapping[str, object], source: SourceType) -> dict[str, str]:
    """Keys and stripped values as a source may be given them. Raises ConfigError, which never shows a value.

    An empty mapping is fine: it takes back what was given before.
    """
    known = KEYS_OF.get(source, ())
    if values and not known:
        raise ConfigError(f"a source of type {source} reads without a credential")
    checked: dict[str, str] = {}
    for key, value in values.items():
        shown = one_line(key, 60)
        is_http = source is SourceType.HTTP
        if key not in known and not (is_http and is_header(key)):
            more = f"; and headers: {HEADERS_IN_SECRETS}" if is_http else ""
            raise ConfigError(f"key {shown!r} means nothing to type {source} (known are {', '.join(known)}{more})")
        if not isinstance(value, str):
            raise ConfigError(f"key {shown}: its value must be text")
        text = value.strip()
        if not text:
            raise ConfigError(f"key {shown}: its value is empty")
        if len(text.encode("utf-8", "surrogateescape")) > VALUE_MAX_BYTES:
            raise ConfigError(f"key {shown}: its value is larger than 1 MiB")
        checked[key] = text
    if source is SourceType.HTTP:
        for key, reason in headers_in(checked)[1].items():
            raise ConfigError(f"key {one_line(key, 60)}: {reason}")
    return checked
