"""Which keys the Secret of a dataset may have: those of BaizeAI/dataset, and what some of our sources need besides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from dsfs.errors import ConfigError, one_line
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

_HEADER: Final = re.compile(r"(?=.*[a-z-])[A-Z][A-Za-z0-9-]*|x-[A-Za-z0-9-]+")


def is_header(key: str) -> bool:
    """Whether a key of the Secret of an HTTP dataset is the name of a header to send: ``X-API-Key``, ``Cookie``.

    A Secret may be another program's as well, and what is for that must not be sent: keys of Kubernetes and of our
    other sources begin small, those that become variables of an environment have no small letter and no dash.
    """
    return _HEADER.fullmatch(key) is not None


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
            more = "; a header begins with a capital or x-, such as X-API-Key" if is_http else ""
            raise ConfigError(f"key {shown!r} means nothing to type {source} (known are {', '.join(known)}{more})")
        if not isinstance(value, str):
            raise ConfigError(f"key {shown}: its value must be text")
        text = value.strip()
        if not text:
            raise ConfigError(f"key {shown}: its value is empty")
        if len(text.encode("utf-8", "surrogateescape")) > VALUE_MAX_BYTES:
            raise ConfigError(f"key {shown}: its value is larger than 1 MiB")
        checked[key] = text
    return checked
