"""Whether manifests could be shown, told before they are rolled out: each source is built, and none is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from daemon.building import LONGEST_CHAIN, refers_back, spec_to_build
from dsfs.datasets.access import Labels, why_hidden
from dsfs.errors import ConfigError, NotShared
from dsfs.manifest.documents import Documents
from dsfs.manifest.schema import API_VERSION, Manifest, SourceType
from dsfs.sources.options import NotHere, UnknownOption
from dsfs.sources.reference import parse_reference
from dsfs.sources.registry import build_source, check_type

_CLAIMS = "/dev/null"  # where claims lie on a node is not known here, and nothing lies below it
_SECRETS: tuple[Mapping[str, str], ...] = ({}, {"username": "somebody", "token": "nothing"})
"""What is not known here either: nothing is wrong with a source that can be built with one of these."""


@dataclass(frozen=True, slots=True)
class Findings:
    """A line each: what would make a dataset FAILED, and what may do so elsewhere."""

    wrong: tuple[str, ...]
    unknown: tuple[str, ...]


def check(documents: Documents) -> Findings:
    """Of datasets that come from files. No Secret is looked at, no network and no disk."""
    known = {manifest.id: manifest for manifest in documents.manifests}
    wrong, unknown = [], []
    for manifest in documents.manifests:
        place = documents.places[manifest.id]
        try:
            check_type(manifest.source.type)
            if manifest.source.type is SourceType.REFERENCE:
                _check_reference(manifest, known, documents.labels)
            else:
                _check_source(manifest)
        except NotHere as error:
            unknown.append(str(place.problem(_field(manifest, error), str(error))))
        except ConfigError as error:
            wrong.append(str(place.problem(_field(manifest, error), str(error))))
    return Findings(tuple(wrong), tuple(unknown))


def _field(manifest: Manifest, error: ConfigError) -> str:
    if isinstance(error, UnknownOption):
        return f"spec.source.options.{error.key}"
    return "spec.source.uri" if manifest.source.type is SourceType.REFERENCE else "spec.source"


def _check_reference(manifest: Manifest, known: Mapping[str, Manifest], labels: Labels) -> None:
    """All of the way, as far as it is known. What is wrong with its end is told there. Raises ConfigError."""
    reader = manifest
    for _step in range(LONGEST_CHAIN):
        namespace, name, _path = parse_reference(reader.source.uri)
        target = known.get(f"{namespace}/{name}")
        if target is None:
            raise NotHere(f"{reader.source.uri} is none of these manifests (it must be there when this one is applied)")
        if why := why_hidden(target, reader.namespace, labels):  # who checks manifests has them all
            raise NotShared(f"{reader.source.uri} is not shared with namespace {reader.namespace}: {why}")
        if target.source.type is not SourceType.REFERENCE:
            return
        reader = target
    raise refers_back(manifest)


def _check_source(manifest: Manifest) -> None:
    """Raises ConfigError."""
    refusals: list[ConfigError] = []
    for secret in _SECRETS:
        try:
            asyncio.run(_build(manifest, secret))
        except ConfigError as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]


async def _build(manifest: Manifest, secret: Mapping[str, str]) -> None:
    source = build_source(
        spec_to_build(manifest),
        secret,
        pvc_root=_CLAIMS,
        namespace=manifest.namespace,
        secret_name=manifest.secret_ref or "",
        strict=manifest.api_version == API_VERSION,
    )
    await source.close()
