"""A source URI of the command line becomes the manifest of one dataset."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from dsfs.errors import ConfigError, one_line
from dsfs.manifest.credentials import credential_in_options, credential_in_uri
from dsfs.manifest.names import DEFAULT_NAMESPACE, to_dataset_name
from dsfs.manifest.schema import Manifest, SourceSpec, SourceType

# Scheme → type. "git+X" is GIT at X, and any "fsspec+X" is FSSPEC at X; both lose their prefix, unless X is a scheme of
# this table.
SCHEMES: Final[Mapping[str, SourceType]] = {
    "s3": SourceType.S3,
    "http": SourceType.HTTP,
    "https": SourceType.HTTP,
    "git": SourceType.GIT,
    "ssh": SourceType.GIT,
    "git+http": SourceType.GIT,
    "git+https": SourceType.GIT,
    "git+ssh": SourceType.GIT,
    "git+file": SourceType.GIT,
    "file": SourceType.PVC,
    "pvc": SourceType.PVC,
    "nfs": SourceType.NFS,
    "hdfs": SourceType.HADOOP,
    "webhdfs": SourceType.HADOOP,
    "swebhdfs": SourceType.HADOOP,
    "gs": SourceType.FSSPEC,
    "az": SourceType.FSSPEC,
    "abfs": SourceType.FSSPEC,
    "abfss": SourceType.FSSPEC,
    "dataworld": SourceType.FSSPEC,
    "nasdaq": SourceType.FSSPEC,
    "hf": SourceType.HUGGING_FACE,
    "huggingface": SourceType.HUGGING_FACE,
    "modelscope": SourceType.MODEL_SCOPE,
    "dataset": SourceType.REFERENCE,
    "manual": SourceType.MANUAL,
}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_FSSPEC = re.compile(r"fsspec\+([A-Za-z0-9][A-Za-z0-9+._-]*(?:://|::).*)", re.IGNORECASE | re.DOTALL)
_SCP = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9._-]+:(?!//)(.+)", re.DOTALL)  # git@host:path, as git and scp write it
_ROOTS = ("/", "./", "../")
_MAY_BE_BARE = frozenset({"manual", "file", "git+file", "hdfs"})  # no authority: this machine, or a configured one
_WITH_PORT = frozenset({SourceType.HTTP, SourceType.GIT, SourceType.NFS, SourceType.HADOOP})


def manifest_from_uri(uri: str, options: Mapping[str, str], *, base_dir: str) -> Manifest:
    """The dataset ``default/<last part of the URI>``; a relative path starts at ``base_dir``, which is absolute.

    Raises ConfigError. No error shows the URI or the value of an option: either may hold what was meant to be secret.
    """
    if not uri:
        raise ConfigError("the source URI is empty (write one such as s3://bucket/prefix or /a/directory)")
    if re.search(r"[\x00-\x1f\x7f]", uri) or not uri.isprintable():
        how = "file:///… with %XX for it" if uri.startswith(_ROOTS) else "it as %XX"
        raise ConfigError(f"the source URI holds a control character or an invisible one (write {how})")
    if why := credential_in_uri(uri):
        raise ConfigError(f"the source URI {why}")
    if found := credential_in_options(options):
        raise ConfigError(f"option {one_line(found[0], 60)}: {found[1]}")
    kind, normalised, name = _understood(uri, base_dir)
    try:
        source = SourceSpec(type=kind, uri=normalised, options=dict(options))
        return Manifest(namespace=DEFAULT_NAMESPACE, name=to_dataset_name(name), source=source)
    except ValidationError as error:
        field = ".".join(map(str, error.errors(include_url=False, include_input=False)[0]["loc"]))
        raise ConfigError(f"the source URI or an option cannot be used: {one_line(field)} is not valid text") from None


def _understood(uri: str, base_dir: str) -> tuple[SourceType, str, str]:
    """Type, normalised URI, and the last part of it."""
    if uri.startswith(_ROOTS) or uri in (".", ".."):
        path = "/" + os.path.normpath(os.path.join(base_dir, uri)).lstrip("/")
        return SourceType.PVC, path, os.path.basename(path)
    if match := _FSSPEC.fullmatch(uri):
        # fsspec's own way to a store that has a source of ours keeps its prefix, which says so.
        kept = uri if match[1].partition("://")[0].lower() in SCHEMES else match[1]
        return SourceType.FSSPEC, kept, _last_part(re.split(r"://|::", match[1], maxsplit=1)[1])
    if match := _SCHEME.fullmatch(uri):
        return _with_scheme(match[1].lower(), match[2])
    if match := _SCP.fullmatch(uri):
        return SourceType.GIT, uri, _last_part(match[1].rpartition(":")[2]).removesuffix(".git")
    raise ConfigError(f"that is neither a source URI nor a path (a relative path begins with ./; {_known()})")


def _with_scheme(scheme: str, rest: str) -> tuple[SourceType, str, str]:
    kind = SCHEMES.get(scheme)
    if kind is None:
        raise ConfigError(f"the scheme {one_line(scheme, 40)}:// is not known ({_known()})")
    if scheme not in _MAY_BE_BARE and rest[:1] in ("", "/", "?", "#"):
        raise ConfigError(f"the source URI names nothing behind {scheme}:// (write a host, bucket or name there)")
    if scheme in ("http", "https", "file") and _path(rest).endswith(".git"):
        kind = SourceType.GIT
    plain = scheme.removeprefix("git+")
    if plain == "file" and not rest.startswith("/"):
        raise ConfigError("a file:// URI has three slashes and an absolute path (write file:///a/directory)")
    if kind in _WITH_PORT:
        _check_authority(plain, rest)
    last = _last_part(rest)
    return kind, f"{plain}://{rest}", last.removesuffix(".git") if kind is SourceType.GIT else last


def _check_authority(scheme: str, rest: str) -> None:
    try:
        _ = urlsplit(f"{scheme}://{rest}").port
    except ValueError:
        raise ConfigError("the host or port in the source URI cannot be read (write host:port)") from None


def _path(rest: str) -> str:
    """What is before the query and the fragment, without slashes at the end."""
    return re.split(r"[?#]", rest, maxsplit=1)[0].rstrip("/")


def _last_part(rest: str) -> str:
    """The last name; of an authority alone its host or bucket, without user and port."""
    head, slash, last = _path(rest).rpartition("/")
    if not slash or not head:
        last = last if slash else re.sub(r":[0-9]*$", "", last.rpartition("@")[2])
    return unquote(last)


def _known() -> str:
    return f"known are {', '.join(sorted(SCHEMES))}, fsspec+PROTOCOL, git@host:path, /a/dir and ./dir"
