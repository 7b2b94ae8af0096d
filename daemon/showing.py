"""One dataset while this server shows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import trio

from dsfs.datasets.dataset import Dataset


@dataclass(slots=True)
class Showing:
    """``scope`` ends the dataset; ``credentials`` are those that its source was built with."""

    dataset: Dataset
    scope: trio.CancelScope
    credentials: Mapping[str, str] | None
    unhide: Callable[[], Awaitable[None]] | None = None
    """Mounts a dataset that must not be seen before it is warm; None once it is."""
    preheating: trio.CancelScope = field(default_factory=trio.CancelScope)
