"""Which names a dataset, a namespace and a secret may have. They become path names, so nothing else gets through."""

from __future__ import annotations

import re

DEFAULT_NAMESPACE = "default"
DATASET_NAME_MAX = 253  # as in Kubernetes (RFC 1123 subdomain)
NAMESPACE_MAX = 63  # as in Kubernetes (RFC 1123 label)

_DATASET = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SECRET = re.compile(r"[A-Za-z0-9][-._A-Za-z0-9]*")  # wider than Kubernetes: on a laptop it is a directory's name


def check_dataset_name(text: str) -> str:
    """The text itself; ValueError with a sentence for a person when it cannot name a dataset."""
    if len(text) > DATASET_NAME_MAX:
        raise ValueError(f"is longer than {DATASET_NAME_MAX} characters (choose a shorter name)")
    if not _DATASET.fullmatch(text):
        raise ValueError(
            'may hold a-z, 0-9, "-" and "." only, with a letter or digit at both ends (choose such a name)'
        )
    return text


def check_namespace(text: str) -> str:
    """The text itself; ValueError with a sentence for a person when it cannot name a namespace."""
    if len(text) > NAMESPACE_MAX:
        raise ValueError(f"is longer than {NAMESPACE_MAX} characters (choose a shorter name)")
    if not _NAMESPACE.fullmatch(text):
        raise ValueError('may hold a-z, 0-9 and "-" only, with a letter or digit at both ends (choose such a name)')
    return text


def is_secret_name(text: str) -> bool:
    """Whether it can name a secret: one path part, never hidden, never ``..``."""
    return len(text) <= DATASET_NAME_MAX and _SECRET.fullmatch(text) is not None


def check_secret_name(text: str) -> str:
    """The text itself; ValueError when it cannot name a secret."""
    if not is_secret_name(text):
        raise ValueError("must be the name of a Secret in the same namespace, not a path")
    return text


def to_dataset_name(text: str) -> str:
    """A valid name as near to any text as it gets; ``data`` if nothing is left of it."""
    name = re.sub(r"[^-a-z0-9.]", "-", text.lower())
    return name.strip("-.")[:DATASET_NAME_MAX].strip("-.") or "data"
