"""What a mount is to show: read from flags and manifests, and handed from one server to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from daemon.settings import Settings
from dsfs.datasets.access import Labels, visible
from dsfs.manifest.config_maps import Configs
from dsfs.manifest.documents import Documents, load_documents
from dsfs.manifest.schema import API_VERSION, Manifest
from dsfs.manifest.secrets import Secrets
from dsfs.manifest.uri import manifest_from_uri

log = structlog.get_logger()

_FORM = "api_version"
HANDED_OVER = "manifests"
CREDENTIALS = "credentials"
SEEN = "seen"
FILES = "files"
"""Under these names the keeper holds, in memory, what the next server is to show, which credentials were set, which
datasets that were to be warm first have been seen, and which manifests were read from files."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be shown. ``single``: one dataset, whose files lie directly at the mount point.

    ``known`` are all manifests, also those that are not visible here: what a REFERENCE may name.
    """

    manifests: tuple[Manifest, ...]
    known: Mapping[str, Manifest]
    secrets: Secrets
    single: bool
    own: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    """Credentials that datasets were given by ``set-credential``, by their ids."""
    labels: Labels = field(default_factory=dict)
    configs: Configs = field(default_factory=dict)


def read_wanted(settings: Settings, held: Mapping[str, str]) -> Wanted:
    """What the server before this one has shown, else what is written down. Raises ConfigError.

    ``held`` is what the keeper has kept for this server.

    A server that takes over after a crash shows the same as the one before, whatever was edited meanwhile.
    """
    own: dict[str, dict[str, str]] = json.loads(held.get(CREDENTIALS, "{}"))
    handed_over = held.get(HANDED_OVER)
    if settings.source_uri is not None:
        manifest = manifest_from_uri(settings.source_uri, settings.source_options, base_dir=settings.base_dir)
        return Wanted((manifest,), {}, Secrets(None, settings.secrets_dirs), single=True, own=own)
    documents = written_down(settings) if handed_over is None else _from_text(handed_over)
    note_passed_over(documents)
    known = {manifest.id: manifest for manifest in documents.manifests}
    labels = documents.labels
    seen = tuple(each for each in documents.manifests if visible(each, settings.namespaces, labels))
    secrets = Secrets(documents.secrets, settings.secrets_dirs)
    return Wanted(seen, known, secrets, single=False, own=own, labels=labels, configs=documents.configs)


def written_down(settings: Settings) -> Documents:
    """What the manifests say now. Raises ConfigError.

    A service is started before anybody has put a dataset into its directory, and goes on when the last one is taken
    out; a person who mounts an empty directory has named another than was meant.
    """
    return load_documents(settings.manifest_paths, none_yet=settings.keeper_alone)


def note_passed_over(documents: Documents) -> None:
    """Log what of manifests is not for dsfs."""
    for line in documents.passed_over:
        log.warning("an object in the manifests is passed over", reason=line)


def to_text(documents: Documents) -> str:
    # where there are none: nothing, so that manifests without have the digest that an older version gave them
    labels = {name: dict(values) for name, values in documents.labels.items()}
    configs = [[*name, dict(files)] for name, files in documents.configs.items()]
    return json.dumps(
        {
            **({"labels": labels} if labels else {}),
            **({"configs": configs} if configs else {}),
            "manifests": [manifest.model_dump(mode="json", exclude={_FORM}) for manifest in documents.manifests],
            # beside them, as a version that knows nothing of it must be able to take over, and refuses what is unknown
            "forms": {each.id: each.api_version for each in documents.manifests if each.api_version != API_VERSION},
            "secrets": [[*name, dict(values)] for name, values in documents.secrets.items()],
        }
    )


def _from_text(text: str) -> Documents:
    raw = json.loads(text)
    forms: Mapping[str, str] = raw.get("forms", {})
    read = (Manifest.model_validate(each) for each in raw["manifests"])
    manifests = tuple(each.model_copy(update={_FORM: forms.get(each.id, API_VERSION)}) for each in read)
    secrets = {(namespace, name): values for namespace, name, values in raw["secrets"]}
    configs = {(namespace, name): files for namespace, name, files in raw.get("configs", ())}
    return Documents(manifests, secrets, raw.get("labels", {}), configs)
