"""Which keys the Secret of a dataset may have: those of BaizeAI/dataset, and what some of our sources need besides."""

from __future__ import annotations

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
"""What each type of source looks for; the types that are not here read without a credential."""


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
        if key not in known:
            raise ConfigError(f"key {shown!r} means nothing to type {source} (known are {', '.join(known)})")
        if not isinstance(value, str):
            raise ConfigError(f"key {shown}: its value must be text")
        text = value.strip()
        if not text:
            raise ConfigError(f"key {shown}: its value is empty")
        if len(text.encode("utf-8", "surrogateescape")) > VALUE_MAX_BYTES:
            raise ConfigError(f"key {shown}: its value is larger than 1 MiB")
        checked[key] = text
    return checked
