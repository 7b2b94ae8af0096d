"""What counts as a request to a source."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from dsfs import metrics
from dsfs.errors import SourceError, SourceRefused, SourceUnsupported
from dsfs.fetch.origin import Origin


def requests() -> dict[str, float]:
    counted = {outcome: metrics.ORIGIN_REQUESTS.labels("test", "listed", outcome) for outcome in metrics.OUTCOMES}
    return {outcome: each._value.get() for outcome, each in counted.items() if each._value.get()}


@pytest.mark.parametrize(
    ("error", "counts"),
    [(None, {"ok": 1}), (SourceRefused("no"), {"refused": 1}), (SourceUnsupported("of a type that is built"), {})],
)
def test_a_listing_is_one_request_if_somebody_was_asked(error: SourceError | None, counts: dict[str, float]) -> None:
    source: Any = object()
    origin = Origin(source, "test", "listed")
    before = requests()
    with nullcontext() if error is None else pytest.raises(type(error)), origin.counted():
        if error is not None:
            raise error
    assert {outcome: value - before.get(outcome, 0) for outcome, value in requests().items()} == {
        **dict.fromkeys(before, 0),
        **counts,
    }
