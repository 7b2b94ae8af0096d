"""What counts as a request to a source."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import trio
import trio.testing

from dsfs import metrics
from dsfs.errors import SourceError, SourceRefused, SourceTimeout, SourceUnsupported
from dsfs.fetch.origin import Origin
from dsfs.fetch.patience import patiently


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


@pytest.mark.parametrize(("reader_waits_s", "outcome"), [(60.0, "timeout"), (5.0, "cancelled")])
def test_who_ended_a_request_tells_an_origin_that_hangs_from_a_reader_that_has_gone(
    reader_waits_s: float, outcome: str
) -> None:
    class Hanging:
        uri = "s3://bucket/"

    source: Any = Hanging()
    before = requests()

    async def read() -> None:
        with trio.move_on_after(reader_waits_s) as reader:
            with pytest.raises(SourceTimeout) if outcome == "timeout" else nullcontext():
                await patiently(Origin(source, "test", "listed"), trio.sleep_forever, 30.0)
        assert reader.cancelled_caught == (outcome == "cancelled")

    trio.run(read, clock=trio.testing.MockClock(autojump_threshold=0))
    assert requests() == {**before, outcome: before.get(outcome, 0) + 1}
