"""``<dataset>@<revision>``: an older revision, opened when somebody asks for it by name, and again after a restart."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

import trio

from dsfs.datasets.dataset import Dataset
from dsfs.datasets.store import DatasetStore
from dsfs.errors import CatalogError
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.whole import WholeTree
from dsfs.sources.unusable import UnusableSource

_LOOK_AGAIN_S = 10.0
"""For how long a revision is not looked for again by its slot after a catalog could not be opened."""
_OLDER = trio.CapacityLimiter(2)  # of their own: look-ups wait for them, and a rebuild may scan catalogs for minutes


class OlderRevisions:
    """Beside their dataset, each with a slot of its own: a directory inode has one dentry, so it cannot be shown twice.

    ``dataset`` finds what is shown by its id; ``open`` makes the files of (dataset, slot, catalog). File side only.
    """

    def __init__(
        self,
        store: DatasetStore,
        whole: WholeTree,
        dataset: Callable[[str], Dataset | None],
        open: Callable[[Dataset, int, str], DatasetFiles],
    ) -> None:
        self._store = store
        self._whole = whole
        self._dataset = dataset
        self._open = open
        self._slots: dict[str, set[int]] = {}  # by the ids of their datasets
        # slots of revisions that are not known any more: of which dataset, and until when (monotonic s)
        self._gone: dict[int, tuple[str, float]] = {}

    def attach(self) -> None:
        """Have the tree ask here."""
        self._whole.find_revision = self.find
        self._whole.reopen = self.reopen

    async def find(self, namespace: str, name: str) -> int | None:
        """The slot of ``dataset@revision``, opened if it is still known. CatalogError: it cannot be told."""
        base, _, revision = name.partition("@")
        dataset = self._dataset(f"{namespace}/{base}")
        if dataset is None or _is_taken_away(dataset):
            return None
        found = await trio.to_thread.run_sync(self._find, dataset, revision, limiter=_OLDER)
        if found is None or self._dataset(dataset.manifest.id) is not dataset:  # it may have gone meanwhile
            return None
        return self._put(dataset, *found)

    def _find(self, dataset: Dataset, revision: str) -> tuple[int, str] | None:
        """Slot and catalog, if it is still known. Not for the loop: it opens catalogs, and a new slot is fsynced."""
        file = self._store.find_revision(dataset.manifest, revision)
        return None if file is None else (self._store.number(f"dataset {dataset.manifest.id}@{revision}"), file)

    def reopen(self, slot: int) -> None:
        """The kernel knows a slot from a server before this one: open it again, if it was a revision's.

        Once: whoever stands in a directory of one that is gone asks with each step, and each time all the catalogs
        would be opened. By its name it is looked for anew.
        """
        _name, until_s = self._gone.get(slot, ("", 0.0))
        if time.monotonic() < until_s:
            return
        what = (self._store.what_has(slot) or "").removeprefix("dataset ")
        name, _, revision = what.partition("@")
        dataset = self._dataset(name)
        if dataset is not None and revision and not _is_taken_away(dataset):
            try:
                file = self._store.find_revision(dataset.manifest, revision)
            except CatalogError:  # stale for now: it may be for want of a descriptor
                self._gone[slot] = name, time.monotonic() + _LOOK_AGAIN_S
                return
            if file is None:
                self._gone[slot] = name, math.inf
            else:
                self._put(dataset, slot, file)

    def _put(self, dataset: Dataset, slot: int, file: str) -> int:
        self._whole.put(self._open(dataset, slot, file))
        self._gone.pop(slot, None)
        self._slots.setdefault(dataset.manifest.id, set()).add(slot)
        return slot

    def drop(self, dataset: str) -> list[bytes]:
        """Show none of a dataset's any more; their names."""
        self._gone = {slot: gone for slot, gone in self._gone.items() if gone[0] != dataset}
        names = []
        for slot in self._slots.pop(dataset, ()):
            self._whole.drop(slot)
            names.append(os.fsencode((self._store.what_has(slot) or "").rpartition("/")[2]))
        return names


def _is_taken_away(dataset: Dataset) -> bool:
    """Whether what it had may not be seen any more: a REFERENCE whose dataset is not shared with it, or is gone."""
    source = dataset.origin.source
    return isinstance(source, UnusableSource) and source.is_taken_away
