"""What a manifest may say, in our own form (``dsfs.dev/v1alpha1``, DESIGN section 8), after it was read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dsfs.model import ReadPath


class SourceType(StrEnum):
    """All types of BaizeAI/dataset, and FSSPEC. CONDA and DATABASE are accepted and never read."""

    S3 = "S3"
    HTTP = "HTTP"
    GIT = "GIT"
    NFS = "NFS"
    PVC = "PVC"
    HADOOP = "HADOOP"
    HUGGING_FACE = "HUGGING_FACE"
    MODEL_SCOPE = "MODEL_SCOPE"
    REFERENCE = "REFERENCE"
    MANUAL = "MANUAL"
    FSSPEC = "FSSPEC"
    CONDA = "CONDA"
    DATABASE = "DATABASE"


class Preheat(StrEnum):
    """Whether a dataset is warmed by itself: not, behind the readers, or before it is shown."""

    NONE = "none"
    BACKGROUND = "background"
    REQUIRED = "required"


class Model(BaseModel):
    """Frozen, and closed: a field that is not known is a mistake worth a line, not worth ignoring."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class SourceSpec(Model):
    """Where the bytes live. ``options`` belong to the source, which checks them when it is built."""

    type: SourceType
    uri: str
    options: dict[str, str] = Field(default_factory=dict)


class MountOptions(Model):
    """Owner and mode that files show. ``path`` is a leading directory under the dataset's root."""

    path: str = "/"
    uid: int | None = None
    gid: int | None = None
    mode: Annotated[str, Field(pattern=r"^[0-7]{3,4}$")] = "0755"

    @property
    def mode_bits(self) -> int:
        return int(self.mode, 8)


class CacheOptions(Model):
    """What the cache may hold of a dataset; quota in bytes."""

    quota: int | None = None
    priority: int = 0


class Manifest(Model):
    """One dataset, whoever wrote it and in whichever form."""

    namespace: str
    name: str
    source: SourceSpec
    secret_ref: str | None = None
    share: bool = False
    share_to_namespace_selector: dict[str, Any] | None = None
    mount_options: MountOptions = MountOptions()
    data_sync_round: int = 1
    preheat: Preheat = Preheat.NONE
    read_path: ReadPath = ReadPath.AUTO
    cache: CacheOptions = CacheOptions()

    @property
    def id(self) -> str:
        """``namespace/name``: how people and the command line call a dataset."""
        return f"{self.namespace}/{self.name}"
