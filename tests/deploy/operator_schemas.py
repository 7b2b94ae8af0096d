"""What the chart uses of the Prometheus operator's kinds, in the words of its CRDs (monitoring.coreos.com/v1).

Its schemas are in no package that can be installed beside pytest, so these are the fields that the chart writes, and no
others: a field that is misspelt, or new, is refused until it is looked up and added here.
"""

from __future__ import annotations

from typing import Any

_DURATION = {"type": "string", "pattern": r"^(0|([0-9]+(y|w|d|h|m|s|ms))+)$"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def _strict(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _kind(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _strict(["name", "namespace"], name={"type": "string"}, namespace={"type": "string"}, labels=_TEXTS)
    return _strict(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind={"const": name},
        metadata=metadata,
        spec=spec,
    )


_SELECTOR = _strict(["matchLabels"], matchLabels=_TEXTS)
_RELABELING = _strict(
    ["sourceLabels", "targetLabel"],
    sourceLabels={"type": "array", "items": {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}},
    targetLabel={"type": "string"},
)
_ENDPOINTS = {
    "type": "array",
    "minItems": 1,
    "items": _strict(
        ["port"],
        port={"type": "string"},
        path={"type": "string"},
        interval=_DURATION,
        honorLabels={"type": "boolean"},
        relabelings={"type": "array", "items": _RELABELING},
    ),
}
_RULE = {
    **_strict(
        ["expr"],
        alert={"type": "string"},
        record={"type": "string"},
        expr={"type": ["string", "integer"]},
        keep_firing_for=_DURATION,
        labels=_TEXTS,
        annotations=_TEXTS,
        **{"for": _DURATION},
    ),
    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
}
_GROUP = _strict(
    ["name", "rules"],
    name={"type": "string", "minLength": 1},
    interval=_DURATION,
    labels=_TEXTS,
    rules={"type": "array", "items": _RULE},
)

SCHEMAS = {
    "PodMonitor": _kind(
        "PodMonitor", _strict(["selector", "podMetricsEndpoints"], selector=_SELECTOR, podMetricsEndpoints=_ENDPOINTS)
    ),
    "ServiceMonitor": _kind(
        "ServiceMonitor", _strict(["selector", "endpoints"], selector=_SELECTOR, endpoints=_ENDPOINTS)
    ),
    "PrometheusRule": _kind("PrometheusRule", _strict(["groups"], groups={"type": "array", "items": _GROUP})),
}
