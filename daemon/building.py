"""From a manifest to the source that reads it: which credentials, which other dataset, which directory of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

import structlog

from daemon.settings import Settings
from daemon.wanted import Wanted
from dsfs.cache.shared_layout import PUBLIC, private_area
from dsfs.client import is_below
from dsfs.datasets.access import Labels, labels_of, visible, why_hidden
from dsfs.errors import ConfigError, NotShared, SourceUnavailable, one_line
from dsfs.manifest.config_maps import Configs, config_map_of, with_files
from dsfs.manifest.documents import Documents
from dsfs.manifest.schema import API_VERSION, MANUAL_URI, Manifest, SourceSpec, SourceType
from dsfs.sources.base import Source, is_of_this_node
from dsfs.sources.directory import DirectorySource
from dsfs.sources.prefixed import PrefixedSource
from dsfs.sources.reference import ReferenceSource, parse_reference
from dsfs.sources.registry import build_source, check_type, credential_environment
from dsfs.sources.unusable import UnusableSource

log = structlog.get_logger()

_CLAIMS = ("pvc://", MANUAL_URI)
LONGEST_CHAIN = 8  # of references to references
_LOOK_S = 1.0
_REST_S = 60.0


def spec_to_build(manifest: Manifest) -> SourceSpec:
    """Of a MANUAL dataset that names no claim, the claim has the dataset's name."""
    spec = manifest.source
    if spec.type is SourceType.MANUAL and "directory" not in spec.options and spec.uri == MANUAL_URI:
        return spec.model_copy(update={"uri": f"{MANUAL_URI}{manifest.name}"})
    return spec


def not_shared(manifest: Manifest, labels: Labels) -> NotShared:
    """What to raise for a REFERENCE to what is not there, or that its namespace may not see: says of the reader alone
    what it is, as which of the two is none of its business."""
    known = ", ".join(f"{key}={value}" for key, value in sorted(labels_of(manifest.namespace, labels).items()))
    return NotShared(
        f"{manifest.id}: {manifest.source.uri} is not there or not shared with namespace {manifest.namespace} "
        f"(its owner sets spec.share; a selector goes by the labels that are known here: {one_line(known)})"
    )


def refers_back(manifest: Manifest) -> ConfigError:
    """What to raise for one of which the way has no end."""
    return ConfigError(f"{manifest.id}: {manifest.source.uri} refers back to itself")


class Builder:
    """``known`` are all manifests of this mount, ``secrets`` all of its secrets, ``labels`` those of namespaces,
    ``configs`` its ConfigMaps, ``own`` the credentials that datasets were given by hand; all change while it runs."""

    def __init__(self, settings: Settings, wanted: Wanted) -> None:
        self.known = dict(wanted.known)
        self.secrets = wanted.secrets
        self.labels = dict(wanted.labels)
        self.configs = dict(wanted.configs)
        self.own = {dataset: dict(values) for dataset, values in wanted.own.items()}
        self._settings = settings
        self._many = not wanted.single
        self._look_from_s = 0.0  # at where directories lie; a while after one of them did not answer
        self._built: WeakKeyDictionary[Source, Mapping[str, str]] = WeakKeyDictionary()
        self._hidden: dict[str, str] = {}  # why, of each REFERENCE that was told to be that

    def with_known_configs(self, documents: Documents) -> Documents:
        """Datasets whose ConfigMap is not among these documents keep what is known of it, as they keep their Secret."""
        manifests = []
        for manifest in documents.manifests:
            name = manifest.namespace, config_map_of(manifest.source) or ""
            if name in self.configs and name not in documents.configs:
                update = {"source": with_files(manifest.source, self.configs[name])}
                manifests.append(manifest.model_copy(update=update))
            else:
                manifests.append(manifest)
        return replace(documents, manifests=tuple(manifests))

    def add_configs(self, configs: Configs) -> None:
        """Take in more ConfigMaps; a file of a known key replaces it."""
        self.configs |= {name: {**self.configs.get(name, {}), **files} for name, files in configs.items()}

    async def build(self, manifest: Manifest, depth: int = 0) -> Source:
        """On the network side: the dataset's source, with the credentials of now. Raises ConfigError."""
        check_type(manifest.source.type)
        credentials = self.credentials(manifest)
        if credentials is None:
            raise ConfigError(
                f"{manifest.id}: secretRef {manifest.secret_ref!r} is not there "
                "(add the Secret to the manifests, or its directory with --secrets)"
            )
        reads_with = credentials or credential_environment(manifest.source, os.environ)
        if manifest.source.type is SourceType.REFERENCE and self._many:
            source, reads_with = await self._build_reference(manifest, depth)
        else:
            self._check_claim(manifest)
            source = build_source(
                spec_to_build(manifest),
                credentials,
                pvc_root=self._settings.pvc_root,
                namespace=manifest.namespace,
                secret_name=manifest.secret_ref or "",
                strict=manifest.api_version == API_VERSION,
            )
            if isinstance(source, DirectorySource) and is_below(
                self._settings.mountpoint, await self._place_of(source)
            ):
                raise ConfigError(
                    f"{manifest.id}: {source.root} holds the mount point {self._settings.mountpoint}, and would show "
                    "itself in itself (mount elsewhere)"
                )
        prefix = manifest.mount_options.path.strip("/")
        if prefix not in ("", "."):
            source = PrefixedSource(source, prefix.removeprefix("./"))
        self._built[source] = reads_with
        return source

    def built_with(self, source: Source) -> Mapping[str, str]:
        """The credentials that a source was built with, which may not be those that are in its Secret now. Raises
        ConfigError for one that was not built here."""
        found = self._built.get(source)
        if found is None:
            raise ConfigError(f"{source.uri}: reads with no credentials that are known")
        return found

    def _check_claim(self, manifest: Manifest) -> None:
        """A claim belongs to its namespace. Directly below --pvc-root lie the claims of the only namespace of a mount:
        once there are two, one of them could name what is the other's. Raises ConfigError."""
        root, source = self._settings.pvc_root, manifest.source
        if root is None or not source.uri.startswith(_CLAIMS) or source.options.get("directory"):
            return
        alone = all(each.namespace == manifest.namespace for each in self.known.values())
        if not alone and not os.path.isdir(f"{root}/{manifest.namespace}"):
            raise ConfigError(
                f"{manifest.id}: {source.uri}: {root}/{manifest.namespace} is not there, and claims directly in {root} "
                "are used by mounts of a single namespace only (give each namespace its directory there)"
            )

    async def _build_reference(self, manifest: Manifest, depth: int) -> tuple[Source, Mapping[str, str]]:
        """Another dataset's source, and what it reads with. Raises ConfigError when there is none, or it is not shared
        with this namespace."""
        namespace, name, path = parse_reference(manifest.source.uri)
        target = self.known.get(f"{namespace}/{name}")
        # One answer for both: a team does not learn which datasets others have.
        if target is None or not visible(target, [manifest.namespace], self.labels):
            why = why_hidden(target, manifest.namespace, self.labels) if target is not None else ""
            if why and self._hidden.get(manifest.id) != why:  # it is built again and again, until it is shared
                log.info("reference to what is not shared with its namespace", dataset=manifest.id, reason=why)
            self._hidden[manifest.id] = why
            raise not_shared(manifest, self.labels)
        self._hidden.pop(manifest.id, None)
        if depth >= LONGEST_CHAIN:
            raise refers_back(manifest)
        source = await self.build(target, depth + 1)
        return ReferenceSource(source, manifest.source.uri, path), self.built_with(source)

    def key_prefix(self, manifest: Manifest) -> str:
        """What has to be put before a path to get that of the dataset whose files a REFERENCE shows."""
        return self._resolved(manifest)[1]

    def shared_area(self, manifest: Manifest, source: Source) -> str:
        """Which part of the shared cache a dataset goes through: what all may see, or its owner's; none for what other
        nodes would not find where this one does."""
        if self._settings.shared_cache is None or isinstance(source, UnusableSource):
            return ""
        if is_of_this_node(source.identity):
            return ""
        owner = self.shown_of(manifest)
        return PUBLIC if owner.share and not owner.share_to_namespace_selector else private_area(owner.namespace)

    def shown_of(self, manifest: Manifest) -> Manifest:
        """The dataset whose source is read: another one's for a REFERENCE."""
        return self._resolved(manifest)[0]

    def refers_to(self, manifest: Manifest) -> list[str]:
        """The ids of all datasets on the way from a REFERENCE to the files that it shows; none for other types."""
        return [name for name, _path in self._way(manifest)]

    def is_entitled(self, manifest: Manifest) -> bool:
        """Whether all on the way of a REFERENCE are there, each shared with the namespace of the one before."""
        reader = manifest
        for name in self.refers_to(manifest):
            target = self.known.get(name)
            if target is None or not visible(target, [reader.namespace], self.labels):
                return False
            reader = target
        return True

    def _resolved(self, manifest: Manifest) -> tuple[Manifest, str]:
        """The dataset whose files are shown, and which path in it: another one's for a REFERENCE."""
        prefix = ""
        for name, path in self._way(manifest):
            prefix = f"{path}/{prefix}" if path else prefix
            manifest = self.known.get(name, manifest)
        return manifest, prefix

    def _way(self, manifest: Manifest) -> list[tuple[str, str]]:
        """Id and path of each dataset that a REFERENCE goes through; the last one may not be there."""
        way: list[tuple[str, str]] = []
        target: Manifest | None = manifest
        while target is not None and target.source.type is SourceType.REFERENCE and len(way) < LONGEST_CHAIN:
            try:
                namespace, name, path = parse_reference(target.source.uri)
            except ConfigError:  # ``build`` says so
                break
            way.append((f"{namespace}/{name}", path))
            target = self.known.get(way[-1][0])
        return way

    def credentials(self, manifest: Manifest) -> Mapping[str, str] | None:
        """What it was given by hand, else what its Secret says now; None when that is not there. Reads files."""
        if (own := self.own.get(manifest.id)) is not None:
            return own
        return self.secrets.get(manifest.namespace, manifest.secret_ref) if manifest.secret_ref else {}

    def reads_with(self, manifest: Manifest) -> Mapping[str, str]:
        """The credentials that a dataset's source has: of a REFERENCE, those of the dataset that it ends at; without a
        Secret, what the environment gives. Reads files; raises ConfigError."""
        shown = self.shown_of(manifest)
        return self.credentials(shown) or credential_environment(shown.source, os.environ)

    async def _place_of(self, source: DirectorySource) -> str:
        """Its root without links, as a mount point is told; as it was given where nothing answers there, and for a
        while behind that: many may lie on one that hangs."""
        if time.monotonic() >= self._look_from_s:
            try:
                async with asyncio.timeout(_LOOK_S):
                    return await source.place()
            except (TimeoutError, SourceUnavailable):
                self._look_from_s = time.monotonic() + _REST_S
        return source.root
