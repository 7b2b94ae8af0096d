"""What a mount is to show: read from flags and manifests, and handed from one server to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from daemon.settings import Settings
from dsfs.datasets.access import visible
from dsfs.manifest.documents import Documents, load_documents
from dsfs.manifest.schema import Manifest
from dsfs.manifest.secrets import Secrets
from dsfs.manifest.uri import manifest_from_uri

HANDED_OVER = "manifests"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be shown. ``single``: one dataset, whose files lie directly at the mount point.

    ``known`` are all manifests, also those that are not visible here: what a REFERENCE may name.
    """

    manifests: tuple[Manifest, ...]
    known: Mapping[str, Manifest]
    secrets: Secrets
    single: bool


def read_wanted(settings: Settings, handed_over: str | None) -> Wanted:
    """What the server before this one has shown, else what is written down. Raises ConfigError.

    A server that takes over after a crash shows the same as the one before, whatever was edited meanwhile.
    """
    if settings.source_uri is not None:
        manifest = manifest_from_uri(settings.source_uri, settings.source_options, base_dir=settings.base_dir)
        return Wanted((manifest,), {}, Secrets(None, settings.secrets_dirs), single=True)
    documents = load_documents(settings.manifest_paths) if handed_over is None else _from_text(handed_over)
    known = {manifest.id: manifest for manifest in documents.manifests}
    seen = tuple(manifest for manifest in documents.manifests if visible(manifest, settings.namespaces))
    return Wanted(seen, known, Secrets(documents.secrets, settings.secrets_dirs), single=False)


def to_text(documents: Documents) -> str:
    return json.dumps(
        {
            "manifests": [manifest.model_dump(mode="json") for manifest in documents.manifests],
            "secrets": [[*name, dict(values)] for name, values in documents.secrets.items()],
        }
    )


def _from_text(text: str) -> Documents:
    raw = json.loads(text)
    manifests = tuple(Manifest.model_validate(each) for each in raw["manifests"])
    return Documents(manifests, {(namespace, name): values for namespace, name, values in raw["secrets"]})
