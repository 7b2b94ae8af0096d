"""Manifests of BaizeAI/dataset (``dataset.baizeai.io/v1alpha1``) as they are, turned into ours.

Like the API server with their CRD, this form ignores fields that it does not know: they are pruned there, so a file
that works in a cluster must work here. What it refuses is a wrong type or value in a field that means something.
(One exception is the label selector: see ``LabelSelector``.)
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from pydantic import ConfigDict, Field, field_validator

from dsfs.manifest.schema import AnyRound, Id, Manifest, Mode, MountOptions, SharedSpec, SourceSpec, SourceType

API_VERSION = "dataset.baizeai.io/v1alpha1"

_TYPES = tuple(kind.value for kind in SourceType if kind is not SourceType.FSSPEC)
_SUBMODULES = frozenset({"", "true", "1", "yes", "on", "recursive", "false", "0", "no", "off", "none"})
_REPO_TYPES = {
    SourceType.HUGGING_FACE: frozenset({"", "model", "dataset", "space"}),
    SourceType.MODEL_SCOPE: frozenset({"", "model", "dataset"}),
}


class BaizeSource(SourceSpec):
    """Their twelve types; FSSPEC is ours."""

    model_config = ConfigDict(extra="ignore")

    @field_validator("type", mode="before")
    @classmethod
    def _check_type(cls, value: object) -> object:
        if value not in _TYPES:
            raise ValueError(f"must be one of {', '.join(_TYPES)}")
        return value


class BaizeMountOptions(MountOptions):
    """Their defaults. A manifest that says nothing about owner and mode means these, not ours."""

    model_config = ConfigDict(extra="ignore")

    uid: Id = 1000
    gid: Id = 1000
    mode: Mode = "0774"


class BaizeSpec(SharedSpec):
    """``spec`` of their form; ``status`` is never looked at."""

    model_config = ConfigDict(extra="ignore")

    source: BaizeSource
    mount_options: BaizeMountOptions = Field(default=BaizeMountOptions(), alias="mountOptions")
    data_sync_round: AnyRound = Field(default=1, alias="dataSyncRound")

    def manifest(self, namespace: str, name: str) -> Manifest:
        manifest = super().manifest(namespace, name)
        return manifest.model_copy(update={"api_version": API_VERSION, "source": as_their_loader(manifest.source)})


def as_their_loader(source: SourceSpec) -> SourceSpec:
    """With what their loader makes of values that it has no word for, where the source would refuse them.

    Any text turns submodules on; but "false" and its like, which say what was meant, turn them off here. A repoType
    that is none of a hub's is as none, and of a hub's query only what dsfs reads is looked at.
    """
    options, uri = dict(source.options), source.uri
    match source.type:
        case SourceType.GIT:
            if options.get("submodules", "").strip().lower() not in _SUBMODULES:
                options["submodules"] = "true"
        case SourceType.HUGGING_FACE | SourceType.MODEL_SCOPE:
            if options.get("repoType", "").lower() not in _REPO_TYPES[source.type]:
                del options["repoType"]
            address, _, query = uri.partition("?")
            parts = query.split("&")
            kept = [part for part in parts if _can_be_read(part, source.type)]
            if kept != parts:  # else it stays letter by letter: another URI is another dataset
                uri = "?".join([address, *(["&".join(kept)] if kept else [])])
    return SourceSpec(type=source.type, uri=uri, options=options)


def _can_be_read(part: str, hub: SourceType) -> bool:
    """Whether a part of a query is one that the sources of hubs know, or says nothing to them."""
    return all(
        key == "revision" or (key == "repoType" and value.lower() in _REPO_TYPES[hub]) for key, value in parse_qsl(part)
    )
