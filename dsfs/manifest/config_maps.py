"""What a dataset has in a ConfigMap beside it: files of Hadoop's configuration, which BaizeAI/dataset mounts for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dsfs.manifest.schema import SourceSpec, SourceType

_NAME: Final = "hdfsConfigName"
_FILES: Final = ("coreSiteXml", "hdfsSiteXml")
"""Options that hold a file's text, or name its key in the ConfigMap; of one that says neither, no file is meant."""


def config_map_of(source: SourceSpec) -> str | None:
    """The name of the ConfigMap, in the dataset's namespace, if it has one."""
    return source.options.get(_NAME) or None if source.type is SourceType.HADOOP else None


def with_config(source: SourceSpec, config_map: Mapping[Any, Any]) -> SourceSpec:
    """The source with texts in place of the keys that name them, where the ConfigMap has those.

    Raises ValidationError, as for texts that stand in the manifest itself.
    """
    data = config_map.get("data")
    texts = {key: text for key, text in data.items() if isinstance(text, str)} if isinstance(data, dict) else {}
    found = {option: texts[key] for option in _FILES if (key := source.options.get(option, "").strip()) in texts}
    return SourceSpec(type=source.type, uri=source.uri, options={**source.options, **found})
