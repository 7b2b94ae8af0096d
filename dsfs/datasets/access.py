"""Who sees which dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from dsfs.errors import one_line
from dsfs.manifest.schema import Manifest

NAME_LABEL = "kubernetes.io/metadata.name"
"""The one label that every namespace has in Kubernetes; the others are known of those alone whose Namespace is among
the manifests."""

Labels = Mapping[str, Mapping[str, str]]
"""Of namespaces whose Namespace is known, by their names."""

NO_LABELS: Final[Labels] = MappingProxyType({})


def visible(manifest: Manifest, namespaces: Collection[str], labels: Labels = NO_LABELS) -> bool:
    """Whether any of these namespaces may see a dataset; without any given everything is seen."""
    return not namespaces or any(_sees(manifest, namespace, labels) for namespace in namespaces)


def labels_of(namespace: str, labels: Labels) -> Mapping[str, str]:
    """All that is known of a namespace."""
    return {**labels.get(namespace, {}), NAME_LABEL: namespace}


def why_hidden(manifest: Manifest, namespace: str, labels: Labels) -> str:
    """Why a namespace may not see a dataset, for whoever may see its manifest; "" if it may."""
    if _sees(manifest, namespace, labels):
        return ""
    unmet = _unmet(manifest.share_to_namespace_selector or {}, namespace, labels)
    if not manifest.share or unmet is None:
        return f"spec.share of {manifest.id} is not true"
    key, known = unmet.get("key", ""), labels_of(namespace, labels)
    has = f"{key}={known[key]}" if key in known else f"no label {key}"
    if key not in known and namespace not in labels:
        has += " that is known (a Namespace document gives them)"
    return one_line(
        f"shareToNamespaceSelector of {manifest.id} asks for {_in_words(unmet)}, namespace {namespace} has {has}"
    )


def _sees(manifest: Manifest, namespace: str, labels: Labels) -> bool:
    if manifest.namespace == namespace:
        return True
    return manifest.share and _unmet(manifest.share_to_namespace_selector or {}, namespace, labels) is None


def _unmet(selector: Mapping[str, Any], namespace: str, labels: Labels) -> Mapping[str, Any] | None:
    """The first requirement that a namespace does not meet, or cannot be said to."""
    known = labels_of(namespace, labels)
    for term in _terms(selector):
        # Of a label that must be absent, or have no such value, nobody can say that it has not, if it is not known.
        hidden = namespace not in labels and term.get("key") != NAME_LABEL
        if (hidden and term.get("operator") in ("NotIn", "DoesNotExist")) or not _matches(term, known):
            return term
    return None


def _terms(selector: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for key, value in (selector.get("matchLabels") or {}).items():
        yield {"key": key, "operator": "In", "values": [value]}
    yield from selector.get("matchExpressions") or ()


def _matches(term: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """An operator that is not known selects nothing: sharing too little can be mended, sharing too much cannot."""
    key, values = term.get("key", ""), term.get("values") or ()
    match term.get("operator"):
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    return False


def _in_words(term: Mapping[str, Any]) -> str:
    """As ``kubectl get -l`` takes it."""
    key: str = term.get("key", "")
    values: list[str] = term.get("values") or []
    match term.get("operator"):
        case "In" if len(values) == 1:
            return f"{key}={values[0]}"
        case "In":
            return f"{key} in ({', '.join(values)})"
        case "NotIn":
            return f"{key} notin ({', '.join(values)})"
        case "DoesNotExist":
            return f"!{key}"
    return key
