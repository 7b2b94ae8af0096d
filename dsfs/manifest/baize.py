"""Manifests of BaizeAI/dataset (``dataset.baizeai.io/v1alpha1``) as they are, turned into ours.

Like the API server with their CRD, this form ignores fields that it does not know: they are pruned there, so a file
that works in a cluster must work here. What it refuses is a wrong type or value in a field that means something.
(One exception is the label selector: see ``LabelSelector``.)
"""

from __future__ import annotations

from pydantic import ConfigDict, Field, field_validator

from dsfs.manifest.schema import Id, Manifest, Mode, MountOptions, SharedSpec, SourceSpec, SourceType

API_VERSION = "dataset.baizeai.io/v1alpha1"

_TYPES = tuple(kind.value for kind in SourceType if kind is not SourceType.FSSPEC)


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

    def manifest(self, namespace: str, name: str) -> Manifest:
        return super().manifest(namespace, name).model_copy(update={"api_version": API_VERSION})
