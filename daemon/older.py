"""``<dataset>@<revision>``: an older revision, opened when somebody asks for it by name, and again after a restart."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from dsfs.datasets.dataset import Dataset
from dsfs.datasets.store import DatasetStore
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.whole import WholeTree
from dsfs.sources.unusable import UnusableSource


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

    def attach(self) -> None:
        """Have the tree ask here."""
        self._whole.find_revision = self.find
        self._whole.reopen = self.reopen

    async def find(self, namespace: str, name: str) -> int | None:
        """The slot of ``dataset@revision``, opened if it is still known."""
        base, _, revision = name.partition("@")
        dataset = self._dataset(f"{namespace}/{base}")
        if dataset is None or _is_taken_away(dataset):
            return None
        file = await trio.to_thread.run_sync(self._store.find_revision, dataset.manifest, revision)
        if file is None or self._dataset(dataset.manifest.id) is not dataset:  # it may have gone meanwhile
            return None
        return self._put(dataset, revision, file)

    def reopen(self, slot: int) -> None:
        """The kernel knows a slot from a server before this one: open it again, if it was a revision's."""
        what = (self._store.what_has(slot) or "").removeprefix("dataset ")
        name, _, revision = what.partition("@")
        dataset = self._dataset(name)
        if dataset is not None and revision and not _is_taken_away(dataset):
            file = self._store.find_revision(dataset.manifest, revision)
            if file is not None:
                self._put(dataset, revision, file)

    def _put(self, dataset: Dataset, revision: str, file: str) -> int:
        slot = self._store.number(f"dataset {dataset.manifest.id}@{revision}")
        self._whole.put(self._open(dataset, slot, file))
        self._slots.setdefault(dataset.manifest.id, set()).add(slot)
        return slot

    def drop(self, dataset: str) -> list[bytes]:
        """Show none of a dataset's any more; their names."""
        names = []
        for slot in self._slots.pop(dataset, ()):
            self._whole.drop(slot)
            names.append(os.fsencode((self._store.what_has(slot) or "").rpartition("/")[2]))
        return names


def _is_taken_away(dataset: Dataset) -> bool:
    """Whether what it had may not be seen any more: a REFERENCE whose dataset is not shared with it, or is gone."""
    source = dataset.origin.source
    return isinstance(source, UnusableSource) and source.is_taken_away
