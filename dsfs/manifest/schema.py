"""What a manifest may say, in our own form (``dsfs.dev/v1alpha1``, DESIGN section 8), after it was read."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from dsfs.errors import ConfigError, one_line
from dsfs.manifest.credentials import credential_in_options, credential_in_uri
from dsfs.manifest.durations import parse_duration
from dsfs.manifest.names import check_dataset_name, check_namespace, check_secret_name
from dsfs.manifest.sizes import parse_size
from dsfs.model import ReadPath, path_parts

API_VERSION = "dsfs.dev/v1alpha1"
MANUAL_URI = "manual://"


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


def _size(value: object) -> object:
    if isinstance(value, (str, int)):
        try:
            return parse_size(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
    raise ValueError('must be a size such as "500GiB"')


def _duration(value: object) -> object:
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            return parse_duration(str(value))
        except ConfigError as error:
            raise ValueError(str(error)) from error
    raise ValueError('must be a duration such as "10m"')


def _mode(text: str) -> str:
    if not re.fullmatch(r"[0-7]{3,4}", text):
        raise ValueError('must be 3 or 4 octal digits in quotes (such as "0755")')
    return text


def _mount_path(text: str) -> str:
    inside = text.strip("/")
    if inside not in ("", ".") and path_parts(inside.removeprefix("./")) is None:
        raise ValueError('must be a directory such as "/" or "data/train" (no "..", no "//", no part over 255 bytes)')
    return text


def _empty_is_none(value: object) -> object:
    return None if value == "" else value  # Go's omitempty: an empty name and none are the same


Id = Annotated[int, Field(strict=True, ge=0, le=2**32 - 2)]  # -1 means "unchanged" to chown(2)
Mode = Annotated[str, AfterValidator(_mode)]
Flag = Annotated[bool, Field(strict=True)]
AnyRound = Annotated[int, Field(strict=True, ge=-(2**31), le=2**31 - 1)]
"""As BaizeAI/dataset counts: its rule for a round is one for changes, and leaves the first free."""
Round = Annotated[AnyRound, Field(ge=1)]
SyncInterval = Annotated[float, BeforeValidator(_duration)] | None
SecretRef = Annotated[Annotated[str, AfterValidator(check_secret_name)] | None, BeforeValidator(_empty_is_none)]


class Model(BaseModel):
    """Frozen, and closed: a field that is not known is a mistake worth a line, not worth ignoring."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        """As Kubernetes does; also what a YAML key is whose whole value was commented out."""
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value


class SourceSpec(Model):
    """Where the bytes live. ``options`` belong to the source, which checks them when it is built.

    Neither carries a credential: that is checked here, so that no way into the daemon can go round it.
    """

    type: SourceType
    uri: str
    options: dict[str, str] = Field(default_factory=dict)

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str) -> str:
        if not uri:
            raise ValueError("is empty")
        if re.search(r"[\x00-\x1f\x7f]", uri):
            raise ValueError("holds a control character (such as a line break)")
        if why := credential_in_uri(uri):
            raise ValueError(why)
        return uri

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, str]) -> dict[str, str]:
        if found := credential_in_options(options):
            raise ValueError(f"{one_line(found[0], 60)} {found[1]}")
        return options


class MountOptions(Model):
    """Owner and mode that files show. ``path`` is a leading directory under the dataset's root."""

    path: Annotated[str, AfterValidator(_mount_path)] = "/"
    uid: Id | None = None
    gid: Id | None = None
    mode: Mode = "0755"

    @property
    def mode_bits(self) -> int:
        return int(self.mode, 8)


class CacheOptions(Model):
    """What the cache may hold of a dataset; quota in bytes, None without a limit of its own."""

    quota: Annotated[int, BeforeValidator(_size)] | None = None
    priority: Annotated[int, Field(strict=True, ge=-(2**31), le=2**31 - 1)] = 0


class LabelRequirement(Model):
    """One of ``matchExpressions`` of a Kubernetes label selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_values(self) -> LabelRequirement:
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            raise ValueError("needs values with In and NotIn, and none with Exists and DoesNotExist")
        return self


class LabelSelector(Model):
    """A Kubernetes label selector. Closed in every form: a misspelt one would select, and share with, everybody."""

    match_labels: dict[str, str] | None = Field(default=None, alias="matchLabels")
    match_expressions: list[LabelRequirement] | None = Field(default=None, alias="matchExpressions")

    def as_dict(self) -> dict[str, Any]:
        """The selector as it was written, without what was left out."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Manifest(Model):
    """One dataset, whoever wrote it and in whichever form."""

    namespace: Annotated[str, AfterValidator(check_namespace)]
    name: Annotated[str, AfterValidator(check_dataset_name)]
    source: SourceSpec
    secret_ref: SecretRef = None
    share: Flag = False
    share_to_namespace_selector: dict[str, Any] | None = None
    mount_options: MountOptions = MountOptions()
    data_sync_round: AnyRound = 1
    preheat: Preheat = Preheat.NONE
    read_path: ReadPath = ReadPath.AUTO
    cache: CacheOptions = CacheOptions()
    sync_interval_s: float | None = None
    api_version: str = API_VERSION
    """Of the form that it was written in."""

    @property
    def id(self) -> str:
        """``namespace/name``: how people and the command line call a dataset."""
        return f"{self.namespace}/{self.name}"


class ClaimRef(Model):
    """An existing volume claim; checked for its shape only."""

    model_config = ConfigDict(extra="ignore")

    name: str
    sub_path: str = Field(default="", alias="subPath")


class SharedSpec(Model):
    """What ``spec`` has in both forms, named as it is written there.

    Claims and resources are accepted, so that a manifest need not be cut to be read here, and kept out of ``Manifest``:
    nothing is copied into a volume. Of type MANUAL, the claim is where the files are.
    """

    model_config = ConfigDict(populate_by_name=False)  # `secret_ref` in a manifest is a mistake

    source: SourceSpec
    secret_ref: SecretRef = Field(default=None, alias="secretRef")
    share: Flag = False
    share_to: LabelSelector | None = Field(default=None, alias="shareToNamespaceSelector")
    mount_options: MountOptions = Field(default=MountOptions(), alias="mountOptions")
    data_sync_round: Round = Field(default=1, alias="dataSyncRound")
    volume_claim_template: dict[str, Any] | None = Field(default=None, alias="volumeClaimTemplate")
    volume_claim_ref: ClaimRef | None = Field(default=None, alias="volumeClaimRef")
    resources: dict[str, Any] | None = None

    def manifest(self, namespace: str, name: str) -> Manifest:
        """The dataset that this is the spec of."""
        # Source and mount options are copied field by field: a subclass of another form must not live on in ours.
        source, mount = self.source, self.mount_options
        uri = (self._claim() or MANUAL_URI) if source.uri == MANUAL_URI else source.uri
        return Manifest(
            namespace=namespace,
            name=name,
            source=SourceSpec(type=source.type, uri=uri, options=source.options),
            secret_ref=self.secret_ref,
            share=self.share,
            share_to_namespace_selector=None if self.share_to is None else self.share_to.as_dict(),
            mount_options=MountOptions(path=mount.path, uid=mount.uid, gid=mount.gid, mode=mount.mode),
            data_sync_round=self.data_sync_round,
        )

    def _claim(self) -> str | None:
        """Which claim the files of a MANUAL dataset are put into, if it says so: its own name else."""
        if (ref := self.volume_claim_ref) is not None:
            return f"{MANUAL_URI}{quote(f'{ref.name}/{ref.sub_path}'.rstrip('/'))}"
        metadata = (self.volume_claim_template or {}).get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        return f"{MANUAL_URI}{quote(name, safe='')}" if isinstance(name, str) and name else None


class Spec(SharedSpec):
    """``spec`` of our own form: what both have, and what a cache needs."""

    preheat: Preheat = Preheat.NONE
    read_path: ReadPath = Field(default=ReadPath.AUTO, alias="readPath")
    cache: CacheOptions = CacheOptions()
    sync_interval: SyncInterval = Field(default=None, alias="syncInterval")

    def manifest(self, namespace: str, name: str) -> Manifest:
        own = {
            "preheat": self.preheat,
            "read_path": self.read_path,
            "cache": self.cache,
            "sync_interval_s": self.sync_interval,
        }
        return super().manifest(namespace, name).model_copy(update=own)
