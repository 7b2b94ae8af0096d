"""Manifests as tests and benchmarks write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def dataset(name: str, uri: str | Path, namespace: str | None = None, type: str = "PVC", **spec: Any) -> dict[str, Any]:
    """One document; ``source`` adds to the source, the rest goes into the spec."""
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    source = {"type": type, "uri": str(uri), **spec.pop("source", {})}
    return {
        "apiVersion": "dsfs.dev/v1alpha1",
        "kind": "Dataset",
        "metadata": metadata,
        "spec": {"source": source, **spec},
    }


def write_manifests(path: Path, *documents: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("---\n".join(json.dumps(document) + "\n" for document in documents))
    return path
