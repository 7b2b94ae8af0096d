"""Which repository of a hub a manifest means: URI and options, taken apart without lower-casing anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote

from dsfs.errors import ConfigError
from dsfs.manifest.schema import SourceSpec
from dsfs.model import path_parts
from dsfs.sources.hub import Filters, checked_options, checked_revision

OPTIONS: Final = ("repoType", "revision", "endpoint", "include", "exclude")
_IN_QUERY: Final = ("repoType", "revision")
_HF_KINDS: Final[Mapping[str, str]] = {"model": "models", "dataset": "datasets", "space": "spaces"}
_MS_KINDS: Final[Mapping[str, str]] = {"model": "models", "dataset": "datasets"}
_NAME = re.compile(r"[A-Za-z0-9_](?:[\w.-]{0,94}[\w-])?", re.ASCII)
# Refs with a "/" that huggingface_hub's parser takes whole (``utils/_hf_uris.py``); any other is written with %2F.
_SPECIAL_REF = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)(?=/|$)")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """``kind`` is models, datasets or spaces; ``path`` a directory in the repository; "" where nothing was said."""

    kind: str
    repo: str
    revision: str
    path: str
    endpoint: str
    filters: Filters


def hugging_face_address(spec: SourceSpec) -> HubAddress:
    """``hf://[models/|datasets/|spaces/]ORG/NAME[@REVISION][/dir][?repoType=…]``. Raises ConfigError."""
    rest, options = _taken_apart(spec, ("hf://", "huggingface://"), "HUGGING_FACE")
    first, slash, below = rest.partition("/")
    prefix = first if slash and first in _HF_KINDS.values() else ""
    rest = below if prefix else rest
    at = rest.find("@")
    revision = ""
    if at > 0 and rest[:at].count("/") <= 1:  # an "@" further on is part of a file's name
        repo, after = rest[:at], rest[at + 1 :]
        special = _SPECIAL_REF.match(after)
        raw = special[0] if special else after.partition("/")[0]
        path, revision = after[len(raw) + 1 :], unquote(raw)
        if not revision:
            raise ConfigError("HUGGING_FACE: there is no revision behind the @ (write hf://ORG/NAME@REVISION)")
    else:
        parts = rest.split("/", 2)
        repo, path = "/".join(parts[:2]), parts[2] if len(parts) > 2 else ""
    return _address(options, repo, revision, path, prefix, _HF_KINDS, "HUGGING_FACE", owners=(0, 1))


def model_scope_address(spec: SourceSpec) -> HubAddress:
    """``modelscope://[models/|datasets/]NAMESPACE/NAME[/dir][?repoType=…]``. Raises ConfigError."""
    rest, options = _taken_apart(spec, ("modelscope://",), "MODEL_SCOPE")
    first, slash, below = rest.partition("/")
    prefix = first if slash and "/" in below and first in _MS_KINDS.values() else ""
    parts = (below if prefix else rest).split("/", 2)
    path = parts[2] if len(parts) > 2 else ""
    name, _, revision = parts[1].partition("@") if len(parts) > 1 else ("", "", "")
    repo = f"{parts[0]}/{name}"
    return _address(options, repo, unquote(revision), path, prefix, _MS_KINDS, "MODEL_SCOPE", owners=(1,))


def _taken_apart(spec: SourceSpec, schemes: tuple[str, ...], hub: str) -> tuple[str, dict[str, str]]:
    """What is behind the scheme and before the query, and the options with those of the query among them."""
    options = checked_options(spec, OPTIONS, hub)
    scheme, separator, rest = spec.uri.partition("://")
    if f"{scheme.lower()}{separator}" not in schemes:
        raise ConfigError(f"{hub}: the URI must begin with {' or '.join(schemes)}")
    rest, _, query = rest.partition("?")
    for key, value in parse_qsl(query):
        if key not in _IN_QUERY:
            raise ConfigError(f"{hub}: parameter {key!r} of the URI is not known (known are {', '.join(_IN_QUERY)})")
        if options.setdefault(key, value) != value:
            raise ConfigError(f"{hub}: the URI and the options say another {key} each (say it once)")
    return rest.strip("/"), options


def _address(
    options: Mapping[str, str],
    repo: str,
    revision: str,
    path: str,
    prefix: str,
    kinds: Mapping[str, str],
    hub: str,
    owners: tuple[int, ...],
) -> HubAddress:
    names = repo.split("/")
    if len(names) - 1 not in owners or not all(_NAME.fullmatch(name) and ".." not in name for name in names):
        raise ConfigError(f"{hub}: the URI names no repository (write OWNER/NAME)")
    kind = prefix or "models"
    if said := options.get("repoType"):
        kind = kinds.get(said.lower(), "")
        if not kind:
            raise ConfigError(f"{hub}: option repoType must be one of {', '.join(kinds)}")
        if prefix and kind != prefix:
            raise ConfigError(f"{hub}: the URI and the options say another repoType each (say it once)")
    asked = options.get("revision", "")
    if revision and asked and revision != asked:
        raise ConfigError(f"{hub}: the URI and the options say another revision each (say it once)")
    if revision or asked:
        checked_revision(revision or asked, hub)
    path = path.strip("/")
    if path and path_parts(path) is None:
        raise ConfigError(f"{hub}: the directory behind the repository cannot be one (no //, no ..)")
    filters = Filters(options.get("include", ""), options.get("exclude", ""))
    return HubAddress(kind, repo, revision or asked, path, options.get("endpoint", ""), filters)
