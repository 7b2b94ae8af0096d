"""Takes secrets out of text that leaves the machine: those that are known by value, and what looks like one."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from daemon.logs import redact
from daemon.settings import Settings
from dsfs.errors import ConfigError
from dsfs.manifest.documents import load_documents

_LEAST_LENGTH = 4  # a shorter value is in every text, and blotting it out everywhere would leave nothing to read
_LARGEST_FILE_BYTES = 1 << 20
_SECRET_NAME = re.compile(r"(?i)(secret|passw|token|authorization|credential|key|signature|cookie|auth|sas)")
_QUERY = re.compile(r"([a-z][a-z0-9+.-]*://[^\s?#\"'\\]*)\?[^\s\"'\\]*", re.IGNORECASE)
_USER = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/@\"'\\]+@", re.IGNORECASE)


class Scrubber:
    """Knows every secret of the mounts it was made for; ``clean`` leaves none of them in a text."""

    def __init__(self, values: Iterable[str]) -> None:
        forms = {form for value in values for form in _forms(value)}
        longest_first = sorted(forms, key=len, reverse=True)  # one value may begin as another does
        self._known = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def clean(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub("***", text)
        return redact(_USER.sub(r"\1***@", _QUERY.sub(r"\1?***", text)))


def is_secret_name(name: str) -> bool:
    """Whether a key of an option or a variable of an environment is called as secrets are."""
    return _SECRET_NAME.search(name) is not None


def known_secrets(mounts: Iterable[Settings], pids: Iterable[int]) -> Iterator[str]:
    """Every value that the mounts' secrets, options and processes have. What cannot be read is nobody's here."""
    yield from _of_environment(f"{key}={value}" for key, value in os.environ.items())
    for pid in pids:
        yield from _of_environment(_read(f"/proc/{pid}/environ").split("\0"))
    for place in ("~/.aws/credentials", "~/.netrc", "~/.git-credentials", "~/.config/rclone/rclone.conf"):
        yield from _of_credentials_file(_read(os.path.expanduser(place)))
    for settings in mounts:
        yield from (value for key, value in settings.source_options.items() if is_secret_name(key))
        for directory in settings.secrets_dirs:
            for parent, _directories, files in os.walk(directory):
                yield from _parts(_read(f"{parent}/{file}") for file in files)
        try:
            documents = load_documents(settings.manifest_paths, none_yet=True) if settings.manifest_paths else None
        except ConfigError:  # changed since it was mounted; values that are gone from there are not in it any more
            documents = None
        if documents is not None:
            for secret in documents.secrets.values():
                yield from _parts(secret.values())


def _parts(values: Iterable[str]) -> Iterator[str]:
    """A value, and its lines: of a key or a file of several, each by itself is one too many."""
    for value in values:
        yield value.strip()
        if "\n" in value.strip():
            yield from (line.strip() for line in value.splitlines() if len(line.strip()) >= 16)


def _of_environment(pairs: Iterable[str]) -> Iterator[str]:
    for pair in pairs:
        name, _, value = pair.partition("=")
        if is_secret_name(name) and not os.path.exists(value):
            yield value


def _of_credentials_file(text: str) -> Iterator[str]:
    yield from (match[1] for match in re.finditer(r"(?m)(?:key|secret|token|pass\w*)\s*[= ]\s*(\S+)", text))
    yield from (match[1] for match in re.finditer(r"://[^:/@\s]*:([^@\s]+)@", text))


def _forms(value: str) -> Iterator[str]:
    """As it is, and as it would be in a URL, in a header of basic authentication or a Secret, and in JSON."""
    if len(value) < _LEAST_LENGTH:
        return
    raw = value.encode(errors="surrogateescape")
    yield value
    yield quote(value, safe="", errors="surrogateescape")
    yield base64.b64encode(raw).decode().rstrip("=")
    yield value.encode("unicode_escape").decode()
    yield value.replace('"', '\\"')


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_FILE_BYTES).decode(errors="surrogateescape")
    except OSError:
        return ""
