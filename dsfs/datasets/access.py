"""Who sees which dataset."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dsfs.manifest.schema import Manifest

NAME_LABEL = "kubernetes.io/metadata.name"
"""The one label that every namespace has in Kubernetes; outside of a cluster it is the only one that is known."""


def visible(manifest: Manifest, namespaces: Collection[str]) -> bool:
    """Whether any of these namespaces may see a dataset; without any given everything is seen."""
    if not namespaces or manifest.namespace in namespaces:
        return True
    selector = manifest.share_to_namespace_selector
    if not manifest.share or (selector and _needs_absence(selector)):
        return False
    return any(selects(selector, {NAME_LABEL: namespace}) for namespace in namespaces)


def _needs_absence(selector: Mapping[str, Any]) -> bool:
    """Whether a label must be absent, or have no such value, that is not known here: nobody can say that it has not."""
    return any(
        term.get("operator") in ("NotIn", "DoesNotExist") and term.get("key") != NAME_LABEL
        for term in selector.get("matchExpressions") or ()
    )


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """A Kubernetes LabelSelector against labels; none, or an empty one, selects all.

    An operator that is not known selects nothing: sharing too little can be mended, sharing too much cannot.
    """
    if not selector:
        return True
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(_matches(term, labels) for term in selector.get("matchExpressions") or ())


def _matches(term: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
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
