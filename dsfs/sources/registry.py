"""From a manifest's ``source`` to the source that reads it: one line per type, imported on first use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import structlog

from dsfs.errors import ConfigError
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.sources.base import Source
from dsfs.sources.options import UnknownOption


@dataclass(frozen=True, slots=True)
class SourceKind:
    """``builder`` is ``module:function``; ``why_not`` says why a type has none. ``environment``: how the variables
    begin that it takes credentials from where it is given none."""

    builder: str = ""
    why_not: str = ""
    environment: tuple[str, ...] = ()


log = structlog.get_logger()

COPY_LIMIT: Final = "bandwidthLimit"
"""An option of BaizeAI/dataset for the job that copies a dataset into a volume; in most of their samples."""

_FSSPEC_ENVIRONMENT: Final = (
    "AWS_", "AZURE_", "BOTO_", "DW_", "GIT_", "GOOGLE_", "HADOOP_", "HF_", "HUGGING_FACE_", "KRB5",
    "NASDAQ_", "NETRC", "QUANDL_",
)  # fmt: skip

_CLOUDS: Final = ("AWS_", "AZURE_", "GOOGLE_")
_GIT_OF_CLOUDS: Final = re.compile(r"\.(amazonaws|azure|visualstudio|google|googlesource)\.", re.IGNORECASE)
"""Whose credential helpers have those."""
_OVER_SSH: Final = re.compile(r"(.*::|\w+\+)?(ssh|sftp)(\+\w+)?://|(?!.*://)[^/:]+:", re.IGNORECASE)

_BUILT: Final = SourceKind(why_not="is built, not read (build it, and name the directory as type PVC)")

SOURCES: Final[Mapping[SourceType, SourceKind]] = {
    SourceType.S3: SourceKind("dsfs.sources.s3:s3_source", environment=("AWS_", "BOTO_")),
    SourceType.HTTP: SourceKind("dsfs.sources.http:http_source", environment=("NETRC",)),
    SourceType.NFS: SourceKind("dsfs.sources.nfs:nfs_source"),
    SourceType.PVC: SourceKind("dsfs.sources.directory:directory_source"),
    SourceType.FSSPEC: SourceKind("dsfs.sources.object_stores:by_scheme", environment=_FSSPEC_ENVIRONMENT),
    SourceType.GIT: SourceKind("dsfs.sources.git:git_source", environment=("GIT_", "KRB5", "NETRC")),
    SourceType.HADOOP: SourceKind("dsfs.sources.hadoop:hadoop_source", environment=("HADOOP_", "KRB5", "NETRC")),
    SourceType.HUGGING_FACE: SourceKind(
        "dsfs.sources.huggingface:huggingface_source", environment=("HF_", "HUGGING_FACE_")
    ),
    SourceType.MODEL_SCOPE: SourceKind("dsfs.sources.modelscope:modelscope_source", environment=("MODELSCOPE_",)),
    SourceType.REFERENCE: SourceKind(
        why_not="needs the dataset that it refers to (mount both from manifests, with -f)"
    ),
    SourceType.MANUAL: SourceKind("dsfs.sources.directory:directory_source"),
    SourceType.CONDA: _BUILT,
    SourceType.DATABASE: _BUILT,
}


def check_type(kind: SourceType) -> None:
    """Raises ConfigError for a type that is never read, whatever else its manifest says."""
    if SOURCES[kind] is _BUILT:
        raise ConfigError(f"source type {kind} {_BUILT.why_not}")


def credential_environment(spec: SourceSpec, environ: Mapping[str, str]) -> dict[str, str]:
    """What a source that is given no Secret may take its credentials from. What changes with each login, and is nothing
    to it, would lose its dataset the right to what is cached."""
    begins = SOURCES[spec.type].environment
    if _OVER_SSH.match(spec.uri):
        begins += ("SSH_AUTH_SOCK",)
    if spec.type is SourceType.GIT and _GIT_OF_CLOUDS.search(spec.uri):
        begins += _CLOUDS
    return {name: value for name, value in environ.items() if begins and name.startswith(begins)}


def build_source(
    spec: SourceSpec,
    credentials: Mapping[str, str],
    *,
    pvc_root: str | None = None,
    namespace: str = "default",
    secret_name: str = "",
    strict: bool = True,
) -> Source:
    """The source of a dataset. Touches no network and no disk but to look where a claim lies.

    ``credentials`` are keys and values of the dataset's Secret, which is called ``secret_name``; ``pvc_root`` is where
    claims lie on this node; unless it is ``strict``, options that the source does not know have no effect. Raises
    ConfigError.
    """
    kind = SOURCES[spec.type]
    if kind.why_not:
        raise ConfigError(f"source type {spec.type} {kind.why_not}")
    module, _, name = kind.builder.partition(":")
    build: Any = getattr(import_module(module), name)
    if COPY_LIMIT in spec.options:
        log.info("nothing is copied in bulk, so its limit has no effect (dsfs warm has --rate)", source=spec.uri)
        spec = _without(spec, COPY_LIMIT)
    stripped = {key: value.strip() for key, value in credentials.items()}
    while True:
        try:
            source: Source = build(spec, stripped, pvc_root=pvc_root, namespace=namespace, secret_name=secret_name)
        except UnknownOption as error:
            if strict:
                raise
            log.info("an option has no effect", source=spec.uri, reason=str(error))
            spec = _without(spec, error.key)
        else:
            return source


def _without(spec: SourceSpec, option: str) -> SourceSpec:
    kept = {key: value for key, value in spec.options.items() if key != option}
    return spec.model_copy(update={"options": kept})
