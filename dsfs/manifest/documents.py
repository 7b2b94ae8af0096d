"""Files, directories and objects of a cluster become manifests and secrets. A mistake is one line that says where."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError

from dsfs.errors import ConfigError, one_line
from dsfs.manifest import baize, schema
from dsfs.manifest.config_maps import Configs, config_map_of, files_of, with_files
from dsfs.manifest.names import DEFAULT_NAMESPACE, check_dataset_name, check_namespace, is_secret_name
from dsfs.manifest.parsing import parse, read_text
from dsfs.manifest.problems import Place
from dsfs.manifest.schema import Manifest, SharedSpec, SourceSpec, Spec
from dsfs.manifest.secrets import secret_values

SUFFIXES = (".yaml", ".yml", ".json")

_SPECS: Mapping[str, type[SharedSpec]] = {schema.API_VERSION: Spec, baize.API_VERSION: baize.BaizeSpec}
_GROUPS = frozenset(version.partition("/")[0] for version in _SPECS)
_KINDS = ("Dataset", "Secret", "Namespace", "List")
_LISTS = ("List", "DatasetList")
_OWN_KEYS = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})


@dataclass(frozen=True, slots=True)
class Documents:
    """What was read, in the order of the files. ``secrets`` maps (namespace, name) to keys and stripped values,
    ``labels`` a namespace to those of its Namespace; ``configs`` are the ConfigMaps that datasets name; ``places`` says
    where each dataset stands, by its id; ``passed_over`` has a line on each object for others."""

    manifests: tuple[Manifest, ...] = ()
    secrets: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict, repr=False)
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    configs: Configs = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict, repr=False, compare=False)
    passed_over: tuple[str, ...] = field(default=(), compare=False)


def load_documents(paths: Sequence[str], *, none_yet: bool = False) -> Documents:
    """All datasets and secrets of these files and directories.

    Of a directory its files ``*.yaml``, ``*.yml`` and ``*.json`` are read in the order of their names, not those of
    directories in it. A file that is named twice is read once. ``none_yet``: a directory may have none of them, or none
    of ours, as others put them there and take them out. Raises ConfigError.
    """
    documents = documents_of(texts_of(paths, none_yet=none_yet))
    if not none_yet:
        refuse_others_alone(documents)
    return documents


def parse_documents(text: str, file: str) -> Documents:
    """As ``load_documents``, of a text that is at hand already; ``file`` names it in errors. Raises ConfigError."""
    return collect(_objects(text, file))


def texts_of(paths: Sequence[str], *, none_yet: bool = False) -> list[tuple[str, str]]:
    """The files that ``load_documents`` reads, each with its text: one may be a pipe. Raises ConfigError."""
    return [(file, read_text(file)) for file in _files(paths, none_yet)]


def documents_of(texts: Sequence[tuple[str, str]]) -> Documents:
    """As ``load_documents``, of what ``texts_of`` has read. Raises ConfigError."""
    return collect(placed for file, text in texts for placed in _objects(text, file))


def refuse_others_alone(documents: Documents) -> None:
    """Raises ConfigError where all that was read is for others: another file than was meant."""
    if documents.passed_over and not (documents.manifests or documents.secrets or documents.labels):
        first, *rest = documents.passed_over
        more = f" [and {len(rest)} more]" if rest else ""
        raise ConfigError(f"{first}{more}, and nothing that is known here is there")


def as_yaml(file: str, text: str) -> str:
    """A text that ``texts_of`` gives, so that it can be put together with others: YAML reads most of JSON, and not all.

    Raises ConfigError.
    """
    if not file.endswith(".json"):
        return text
    return "\n---\n".join(yaml.safe_dump(document) for _number, document in parse(text, file))


def collect(objects: Iterator[tuple[Place, dict[Any, Any]]]) -> Documents:
    """Objects and where each was found, sorted out by their kind. Raises ConfigError.

    The same file is for ``kubectl apply`` too, so other kinds of Kubernetes objects may stand in it.
    """
    manifests: dict[tuple[str, str], tuple[Manifest, Place]] = {}
    secrets: dict[tuple[str, str], tuple[Mapping[str, str], Place]] = {}
    labels: dict[tuple[str], tuple[Mapping[str, str], Place]] = {}
    config_maps: list[tuple[Mapping[Any, Any], Place]] = []
    passed_over = []
    for place, document in objects:
        kind = _text(document, "kind", place)
        if kind == "Dataset":
            manifest = read_dataset(document, place)
            key = (manifest.namespace, manifest.name)
            _refuse_second(manifests.get(key), place, key)
            manifests[key] = manifest, place
        elif kind == "Secret":
            key, values = _read_secret(document, place)
            _refuse_second(secrets.get(key), place, key)
            secrets[key] = values, place
        elif kind == "Namespace":
            namespace, said = _read_namespace(document, place)
            first = labels.get(namespace)
            if said is not None and (first is None or first[0] != said):  # several files may create it, each the same
                _refuse_second(first, place, namespace)
                labels[namespace] = said, place
        elif kind == "ConfigMap" and document.get("apiVersion") == "v1":
            config_maps.append((document, place))
        else:
            passed_over.append(_pass_over(kind, document, place))
    configs, others = _take_config(manifests, config_maps)
    passed_over += [_pass_over("ConfigMap", document, place) for document, place in others]
    return Documents(
        manifests=tuple(manifest for manifest, _ in manifests.values()),
        secrets=MappingProxyType({key: values for key, (values, _) in secrets.items()}),
        labels=MappingProxyType({name: values for (name,), (values, _) in labels.items()}),
        configs=MappingProxyType(configs),
        places=MappingProxyType({manifest.id: place for manifest, place in manifests.values()}),
        passed_over=tuple(passed_over),
    )


def _take_config(
    manifests: dict[tuple[str, str], tuple[Manifest, Place]], config_maps: Sequence[tuple[Mapping[Any, Any], Place]]
) -> tuple[dict[tuple[str, str], dict[str, str]], list[tuple[Mapping[Any, Any], Place]]]:
    """Give datasets what they have in ConfigMaps: what was taken, and those that are for others. Raises ConfigError."""
    by_name = {_name_of(document): document for document, _ in config_maps}  # the last one wins, as in a cluster
    taken: dict[tuple[str, str], dict[str, str]] = {}
    for key, (manifest, place) in manifests.items():
        wanted = manifest.namespace, config_map_of(manifest.source) or ""
        if wanted[1] and wanted in by_name:
            try:
                files = files_of(manifest.source, by_name[wanted])
            except ValueError as error:
                raise place.problem("spec.source.options", str(error)) from None
            taken.setdefault(wanted, {}).update(files)
            manifests[key] = _with_files(manifest, files, place), place
    return taken, [(document, place) for document, place in config_maps if _name_of(document) not in taken]


def _name_of(document: Mapping[Any, Any]) -> tuple[str, str]:
    """Namespace and name of an object that may be for others, and is not checked."""
    metadata = document.get("metadata")
    found = metadata if isinstance(metadata, dict) else {}
    namespace, name = found.get("namespace") or DEFAULT_NAMESPACE, found.get("name")
    return str(namespace), name if isinstance(name, str) else ""


def _with_files(manifest: Manifest, files: Mapping[str, str], place: Place) -> Manifest:
    try:
        return manifest.model_copy(update={"source": with_files(manifest.source, files)})
    except ValidationError as error:
        raise place.rejected(error, SourceSpec, "spec.source") from None  # its text may hold values


def _pass_over(kind: str, document: Mapping[Any, Any], place: Place) -> str:
    """A line on an object that is for others. Raises ConfigError for what must be a misspelt one of ours."""
    shown, known = one_line(kind, 60), f"{', '.join(_KINDS[:-1])} and {_KINDS[-1]}"
    misspelt = not kind.isalnum() or kind.capitalize() in _KINDS
    if misspelt or _text(document, "apiVersion", place).partition("/")[0] in _GROUPS:
        raise place.problem("kind", f"{shown} is not known here (take it out; known are {known})")
    return f"{place}: kind {shown} is passed over (it means nothing to dsfs)"


def read_dataset(document: Mapping[Any, Any], place: Place) -> Manifest:
    """One object of kind Dataset in either form, as a file or the Kubernetes API gives it. Raises ConfigError."""
    api_version = _text(document, "apiVersion", place)
    model = _SPECS.get(api_version)
    if model is None:
        raise place.problem("apiVersion", f"must be one of {', '.join(_SPECS)}")
    namespace, name = _identity(document, place)
    try:
        check_dataset_name(name)
    except ValueError as error:
        raise place.problem("metadata.name", str(error)) from None
    unknown = [key for key in document if key not in _OWN_KEYS]
    if unknown and model is Spec:
        raise place.problem(_key(unknown[0]), f"is not a known field (known: {', '.join(sorted(_OWN_KEYS))})")
    spec = _mapping(document, "spec", place)
    if spec is None:
        raise place.problem("spec", "is missing")
    try:
        return model.model_validate(spec).manifest(namespace, name)
    except ValidationError as error:
        raise place.rejected(error, model, "spec") from None  # its text may hold values


def document_of(manifest: Manifest) -> dict[str, Any]:
    """The object that says all of this, as ``read_dataset`` takes it."""
    source, mount, cache = manifest.source, manifest.mount_options, manifest.cache
    spec: dict[str, Any] = {
        "source": {"type": str(source.type), "uri": source.uri, "options": dict(source.options)},
        "secretRef": manifest.secret_ref,
        "share": manifest.share,
        "shareToNamespaceSelector": manifest.share_to_namespace_selector,
        "mountOptions": _said({"path": mount.path, "uid": mount.uid, "gid": mount.gid, "mode": mount.mode}),
        "dataSyncRound": manifest.data_sync_round,
    }
    if manifest.api_version == schema.API_VERSION:
        spec |= {
            "preheat": str(manifest.preheat),
            "readPath": str(manifest.read_path),
            "cache": _said({"quota": cache.quota, "priority": cache.priority}),
            "syncInterval": None if manifest.sync_interval_s is None else f"{manifest.sync_interval_s:f}s",
        }
    return {
        "apiVersion": manifest.api_version,
        "kind": "Dataset",
        "metadata": {"name": manifest.name, "namespace": manifest.namespace},
        "spec": _said(spec),
    }


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _files(paths: Sequence[str], none_yet: bool) -> Iterator[str]:
    seen: set[str] = set()
    for path in paths:
        for file in _files_in(path, none_yet) if os.path.isdir(path) else [path]:
            real = os.path.realpath(file)
            if real not in seen:
                seen.add(real)
                yield file


def _files_in(directory: str, none_yet: bool) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise ConfigError(f"{one_line(directory)}: cannot be read: {error.strerror}") from error
    files = [os.path.join(directory, name) for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
    files = [file for file in files if not os.path.isdir(file)]
    if not files and not none_yet:
        raise ConfigError(f"{one_line(directory)}: has no manifests (put *.yaml, *.yml or *.json files into it)")
    return files


def _objects(text: str, file: str) -> Iterator[tuple[Place, dict[Any, Any]]]:
    """Every object of a text; those of a List, or DatasetList, one by one."""
    for number, document in parse(text, file):
        place = Place(file, number)
        if not isinstance(document, dict):
            raise place.problem("", "must be a mapping with apiVersion, kind, metadata and spec")
        if document.get("kind") not in _LISTS:
            yield place, document
            continue
        items = document.get("items")
        if not isinstance(items, list):
            raise place.problem("items", "must be a list")
        for index, item in enumerate(items, start=1):
            inside = Place(file, number, index)
            if not isinstance(item, dict) or item.get("kind") in _LISTS:  # a List in a List could hold itself
                raise inside.problem("", "must be an object, and no List")
            yield inside, item


def _read_secret(document: Mapping[Any, Any], place: Place) -> tuple[tuple[str, str], Mapping[str, str]]:
    if _text(document, "apiVersion", place) != "v1":
        raise place.problem("apiVersion", "must be v1 for a Secret")
    namespace, name = _identity(document, place)
    if not is_secret_name(name):
        raise place.problem("metadata.name", 'must begin with a letter or digit and hold those, "-", "_" and "." only')
    return (namespace, name), MappingProxyType(secret_values(document, place))


def _read_namespace(document: Mapping[Any, Any], place: Place) -> tuple[tuple[str], Mapping[str, str] | None]:
    """Its name and its labels; of the rest nothing is needed here. None: it says nothing of labels, as one that is only
    to create the namespace, and so not that there are none."""
    if _text(document, "apiVersion", place) != "v1":
        raise place.problem("apiVersion", "must be v1 for a Namespace")
    metadata = _mapping(document, "metadata", place) or {}
    try:
        name = check_namespace(_text(metadata, "name", place, "metadata."))
    except ValueError as error:
        raise place.problem("metadata.name", str(error)) from None
    labels = metadata.get("labels")
    if labels is None:
        return (name,), None
    if not isinstance(labels, dict):
        raise place.problem("metadata.labels", "must be a mapping")
    if not all(isinstance(text, str) for label in labels.items() for text in label):
        raise place.problem("metadata.labels", "must be text, keys and values (put it in quotes)")
    return (name,), MappingProxyType(dict(labels))


def _identity(document: Mapping[Any, Any], place: Place) -> tuple[str, str]:
    """Namespace and name; the name is not checked yet. Labels, annotations and whatever else stay unread."""
    metadata = _mapping(document, "metadata", place)
    if metadata is None:
        raise place.problem("metadata.name", "is missing")
    name = _text(metadata, "name", place, "metadata.")
    if metadata.get("namespace") in (None, ""):
        return DEFAULT_NAMESPACE, name
    namespace = _text(metadata, "namespace", place, "metadata.")
    try:
        return check_namespace(namespace), name
    except ValueError as error:
        raise place.problem("metadata.namespace", str(error)) from None


def _refuse_second(first: tuple[object, Place] | None, place: Place, key: tuple[str, ...]) -> None:
    if first is not None:
        raise place.problem("metadata.name", f"{'/'.join(key)} is already in {first[1]} (rename or remove one of them)")


def _text(mapping: Mapping[Any, Any], key: str, place: Place, prefix: str = "") -> str:
    value = mapping.get(key)
    if value is None:
        raise place.problem(prefix + key, "is missing")
    if not isinstance(value, str):
        raise place.problem(prefix + key, "must be text (put it in quotes)")
    return value


def _mapping(mapping: Mapping[Any, Any], key: str, place: Place) -> dict[Any, Any] | None:
    value = mapping.get(key)
    if value is not None and not isinstance(value, dict):
        raise place.problem(key, "must be a mapping")
    return value


def _key(key: object) -> str:
    return one_line(key, 60) if isinstance(key, str) else "(not text)"
