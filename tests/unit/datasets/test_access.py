"""A team sees its own datasets and the shared ones, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from dsfs.datasets.access import NAME_LABEL, visible, why_hidden
from dsfs.manifest.schema import Manifest, SourceSpec


def dataset(*, share: bool = False, selector: dict[str, Any] | None = None) -> Manifest:
    return Manifest(
        namespace="vision",
        name="imagenet",
        source=SourceSpec(type="S3", uri="s3://bucket/prefix"),
        share=share,
        share_to_namespace_selector=selector,
    )


def term(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


NAMED_AUDIO = {"matchLabels": {NAME_LABEL: "audio"}}


@pytest.mark.parametrize(
    ("manifest", "namespaces", "seen"),
    [
        (dataset(), (), True),
        (dataset(), ("vision",), True),
        (dataset(), ("audio",), False),
        (dataset(), ("audio", "vision"), True),
        (dataset(share=True), ("audio",), True),
        (dataset(share=True, selector={}), ("audio",), True),
        (dataset(share=True, selector=NAMED_AUDIO), ("audio",), True),
        (dataset(share=True, selector=NAMED_AUDIO), ("text",), False),
        (dataset(share=True, selector=NAMED_AUDIO), ("vision",), True),
        (dataset(share=True, selector=NAMED_AUDIO), ("text", "audio"), True),
        (dataset(share=False, selector=NAMED_AUDIO), ("audio",), False),
        # what labels a namespace does not have is not known, but for its name
        (dataset(share=True, selector=term("tier", "NotIn", "untrusted")), ("audio",), False),
        (dataset(share=True, selector=term("tier", "DoesNotExist")), ("audio",), False),
        (dataset(share=True, selector=term(NAME_LABEL, "NotIn", "audio")), ("audio",), False),
        (dataset(share=True, selector=term(NAME_LABEL, "NotIn", "audio")), ("text",), True),
    ],
)
def test_who_sees_it(manifest: Manifest, namespaces: tuple[str, ...], seen: bool) -> None:
    assert visible(manifest, namespaces) is seen


UNKNOWN = "no label team that is known (a Namespace document gives them)"
LABELS = {"audio": {"tier": "trusted", "team": "a"}, "odd": {NAME_LABEL: "text"}, "bare": {}}


@pytest.mark.parametrize(
    ("selector", "namespace", "why"),
    [
        ({"matchLabels": {"team": "a"}}, "audio", ""),
        (term("team", "In", "a", "b"), "audio", ""),
        (term("tier", "NotIn", "untrusted"), "audio", ""),
        (term("zone", "DoesNotExist"), "audio", ""),
        (term("zone", "DoesNotExist"), "bare", ""),
        ({"matchLabels": {"team": "a"}}, "vision", ""),
        ({"matchLabels": {"team": "b"}}, "audio", "asks for team=b, namespace audio has team=a"),
        (term("team", "NotIn", "a", "b"), "audio", "asks for team notin (a, b), namespace audio has team=a"),
        (term("team", "In", "b", "c"), "audio", "asks for team in (b, c), namespace audio has team=a"),
        (term("tier", "DoesNotExist"), "audio", "asks for !tier, namespace audio has tier=trusted"),
        (
            {"matchLabels": {"tier": "trusted", "zone": "x"}},
            "audio",
            "asks for zone=x, namespace audio has no label zone",
        ),
        (term("team", "Exists"), "bare", "asks for team, namespace bare has no label team"),
        (term("team", "DoesNotExist"), "unknown", f"asks for !team, namespace unknown has {UNKNOWN}"),
        (NAMED_AUDIO, "odd", f"asks for {NAME_LABEL}=audio, namespace odd has {NAME_LABEL}=odd"),
    ],
)
def test_labels_of_namespaces_decide(selector: dict[str, Any], namespace: str, why: str) -> None:
    manifest = dataset(share=True, selector=selector)
    said = why_hidden(manifest, namespace, LABELS)
    assert said == (f"shareToNamespaceSelector of vision/imagenet {why}" if why else "")
    assert visible(manifest, [namespace], LABELS) is (not why)


def test_what_is_not_shared_is_hidden_whatever_the_selector_says() -> None:
    manifest = dataset(selector={"matchLabels": {"team": "a"}})
    assert why_hidden(manifest, "audio", LABELS) == "spec.share of vision/imagenet is not true"


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        (None, True),
        ({}, True),
        ({"matchLabels": {"team": "a"}}, True),
        ({"matchLabels": {"team": "a", "tier": "x"}}, False),
        ({"matchLabels": {"team": "b"}}, False),
        (term("team", "In", "a", "b"), True),
        (term("team", "In", "b"), False),
        (term("tier", "In", "x"), False),
        (term("team", "NotIn", "b"), True),
        (term("team", "NotIn", "a"), False),
        (term("tier", "NotIn", "x"), True),  # as in Kubernetes: a label that is not there is not in
        (term("team", "Exists"), True),
        (term("tier", "Exists"), False),
        (term("team", "DoesNotExist"), False),
        (term("tier", "DoesNotExist"), True),
        (term("team", "Resembles", "a"), False),
        ({"matchLabels": {"team": "a"}} | term("team", "NotIn", "a"), False),
    ],
)
def test_selectors(selector: dict[str, Any] | None, selected: bool) -> None:
    assert visible(dataset(share=True, selector=selector), ["audio"], {"audio": {"team": "a"}}) is selected
