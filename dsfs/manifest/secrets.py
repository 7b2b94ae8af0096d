"""Where a secretRef leads: Secret documents, and directories with a file per key. No value leaves by repr or error.

Directories are ``DIR/[NAMESPACE/]SECRET/KEY``. Who may read which, in one DIR:

* ``DIR/NAMESPACE/SECRET`` belongs to that namespace alone.
* ``DIR/SECRET`` is for every namespace that has no directory of its own. Once ``DIR/NAMESPACE`` exists, be it empty or
  unreadable, that namespace has what is in there and nothing else: losing a secret must not mean getting another's.
* A directory that has directories in it is a namespace's and never a secret, whatever files lie beside them.

So a node that serves several teams gives each a directory, and keeps DIR/SECRET for what all may use.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterable, Mapping, Sequence

from dsfs.errors import ConfigError, one_line
from dsfs.manifest.names import check_namespace, is_secret_name
from dsfs.manifest.problems import Place

VALUE_MAX_BYTES = 1 << 20  # what Kubernetes allows for a whole Secret

_ATTEMPTS = 5


def secret_values(document: Mapping[object, object], place: Place) -> dict[str, str]:
    """Keys and values of a Secret document; ``stringData`` wins over ``data``. Raises ConfigError without any value.

    Values lose white space at both ends, as in BaizeAI/dataset. Bytes that are not UTF-8 are carried as surrogate
    escapes: a key that nobody here uses is no reason to refuse the rest.
    """
    values: dict[str, str] = {}
    for key, text in _entries(document, "data", place):
        try:
            raw = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise place.problem(f"data.{key}", "is not base64 (plain text belongs into stringData)") from None
        values[key] = _decoded(raw)
    for key, text in _entries(document, "stringData", place):
        values[key] = text.strip()
    return values


def _entries(document: Mapping[object, object], field: str, place: Place) -> list[tuple[str, str]]:
    given = document.get(field)
    if given is None:
        return []
    if not isinstance(given, dict):
        raise place.problem(field, "must be a mapping")
    entries = []
    for key, value in given.items():
        if not isinstance(key, str):
            raise place.problem(field, "has a key that is not text (put it in quotes)")
        if not isinstance(value, str):
            raise place.problem(f"{field}.{one_line(key, 60)}", "must be text (put it in quotes)")
        entries.append((key, value))
    return entries


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape").strip()


class Secrets:
    """All secrets of this daemon. Directories are read anew at each call, so that a rotated key is seen."""

    def __init__(
        self, documents: Mapping[tuple[str, str], Mapping[str, str]] | None = None, directories: Sequence[str] = ()
    ) -> None:
        """Raises ConfigError for a directory that is none."""
        self._documents = dict(documents or {})
        self._directories = tuple(directories)
        for directory in self._directories:
            if not os.path.isdir(directory):
                raise ConfigError(f"{one_line(directory)}: is not a directory of secrets (make it, or name another)")

    def get(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """Keys and stripped values of one secret, or None. Documents come first, then the directories in their order.

        Secrets of one name are never merged. Raises ConfigError for one that is there and cannot be read.
        """
        if not is_secret_name(name) or not _is_namespace(namespace):
            return None
        if (found := self._documents.get((namespace, name))) is not None:
            return dict(found)
        for directory in self._directories:
            own = os.path.join(directory, namespace)
            values = _read_secret(os.path.join(own if _is_namespace_directory(own) else directory, name))
            if values is not None:
                return values
        return None

    @property
    def documents(self) -> Mapping[tuple[str, str], Mapping[str, str]]:
        """What came as documents, not from directories."""
        return dict(self._documents)

    def add(self, documents: Mapping[tuple[str, str], Mapping[str, str]]) -> None:
        """Take in more Secret documents; one of a known name replaces it."""
        self._documents.update(documents)

    def drop(self, names: Iterable[tuple[str, str]]) -> None:
        """Secret documents that are not there any more."""
        for name in names:
            self._documents.pop(name, None)

    def __repr__(self) -> str:
        return f"Secrets(documents={len(self._documents)}, directories={list(self._directories)!r})"


def _is_namespace(text: str) -> bool:
    try:
        check_namespace(text)
    except ValueError:
        return False
    return True


def _is_namespace_directory(path: str) -> bool:
    """Whether this belongs to a namespace. One with nothing but files in it is a secret of that name for all."""
    try:
        files, directories = _visible(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # it is there: what cannot be seen must not be replaced by what everybody may see
    return bool(directories) or not files


def _read_secret(path: str) -> dict[str, str] | None:
    """A file per key. A kubelet swaps all at once, through ``..data``: never half of the old and half of the new."""
    try:
        for _ in range(_ATTEMPTS):
            before = _kubelet_version(path)
            files, directories = _visible(path)
            if directories or not files:
                return None
            values = {key: value for key in files if (value := _read_value(os.path.join(path, key))) is not None}
            if before == _kubelet_version(path):
                return values
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"secret {one_line(path)}: cannot be read: {error.strerror}") from error
    raise ConfigError(f"secret {one_line(path)}: changes all the time (try again)")


def _visible(path: str) -> tuple[list[str], list[str]]:
    """Names of files and of directories; hidden ones, such as ``..data`` of a kubelet, are left out."""
    files: list[str] = []
    directories: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (directories if entry.is_dir() else files).append(entry.name)
    return sorted(files), sorted(directories)


def _kubelet_version(path: str) -> str | None:
    try:
        return os.readlink(os.path.join(path, "..data"))
    except OSError:
        return None


def _read_value(path: str) -> str | None:
    """None for a file that has gone since it was listed, and for what is no regular file (it might block for ever)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        raw = file.read(VALUE_MAX_BYTES + 1)
    if len(raw) > VALUE_MAX_BYTES:
        raise ConfigError(f"secret {one_line(path)}: is larger than 1 MiB")
    return _decoded(raw)
