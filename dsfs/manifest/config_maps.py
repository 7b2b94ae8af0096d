"""What a dataset has in a ConfigMap beside it: files of Hadoop's configuration, which BaizeAI/dataset mounts for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from xml.etree import ElementTree

from dsfs.manifest.credentials import credential_in_options
from dsfs.manifest.schema import SourceSpec, SourceType

_NAME: Final = "hdfsConfigName"
_FILES: Final = ("coreSiteXml", "hdfsSiteXml")
"""Options that hold a file's text, or name its key in the ConfigMap; of one that says neither, no file is meant."""
_ADDRESS: Final = "fs.defaultFS"
_NEEDED: Final = ("dfs.", "hadoop.")

Configs = Mapping[tuple[str, str], Mapping[str, str]]
"""By namespace and name of a ConfigMap: the keys that datasets name, and what is needed of these files."""


def config_map_of(source: SourceSpec) -> str | None:
    """The name of the ConfigMap, in the dataset's namespace, if it has one."""
    return source.options.get(_NAME) or None if source.type is SourceType.HADOOP else None


def files_of(source: SourceSpec, config_map: Mapping[Any, Any]) -> dict[str, str]:
    """Those keys of the ConfigMap that the source names, each with what the source needs of its file.

    Raises ValueError, which names the option and shows no value.
    """
    data = config_map.get("data")
    texts = {key: text for key, text in data.items() if isinstance(text, str)} if isinstance(data, dict) else {}
    files = {}
    for option in _FILES:
        key = source.options.get(option, "").strip()
        if texts.get(key, "").strip():
            try:
                files[key] = _needed(texts[key].strip())
            except ValueError as error:
                raise ValueError(f"{option} {error}, in the ConfigMap that {_NAME} names") from None
    return files


def with_files(source: SourceSpec, files: Mapping[str, str]) -> SourceSpec:
    """The source with texts in place of the keys that name them, where the ConfigMap has those.

    Raises ValidationError, as for texts that stand in the manifest itself.
    """
    found = {option: files[key] for option in _FILES if (key := source.options.get(option, "").strip()) in files}
    return SourceSpec(type=source.type, uri=source.uri, options={**source.options, **found})


def settings_of(text: str) -> dict[str, str]:
    """Names and values of a file of Hadoop's configuration. Raises ValueError, which shows none of them."""
    if "<!" in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL):
        raise ValueError("has a DOCTYPE or entities (leave them out, Hadoop files need none)")
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        raise ValueError("is not XML") from None
    return {
        name: (entry.findtext("value") or "").strip()
        for entry in tree.iter("property")
        if (name := (entry.findtext("name") or "").strip())
    }


def _needed(text: str) -> str:
    """A whole cluster reads this file, and has keys of its object stores in it: they are left out, as is all that says
    nothing of HDFS, since options of a source are shown."""
    kept = ElementTree.Element("configuration")
    for name, value in settings_of(text).items():
        # by its last part too: `hadoop.zk.auth` holds a password
        is_credential = credential_in_options({name: value, name.rpartition(".")[2]: value}) is not None
        if (name == _ADDRESS or name.startswith(_NEEDED)) and not is_credential:
            entry = ElementTree.SubElement(kept, "property")
            ElementTree.SubElement(entry, "name").text = name
            ElementTree.SubElement(entry, "value").text = value
    return ElementTree.tostring(kept, encoding="unicode")
