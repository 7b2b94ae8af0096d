"""Older revisions, found by name and by number: what waits for a disk is not done in the loop, nor again and again."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from daemon.older import OlderRevisions
from dsfs.catalog.writer import CatalogWriter
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.selection import CATALOG
from dsfs.datasets.store import DatasetStore
from dsfs.errors import CatalogError
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.nodes import ROOT_ID, nodeid_of
from dsfs.filesystem.tree import NamespaceTree
from dsfs.filesystem.whole import WholeTree
from dsfs.manifest.schema import Manifest, SourceSpec

MANIFEST = Manifest(namespace="team", name="data", source=SourceSpec(type="S3", uri="s3://bucket"))


class Shown:
    """One dataset of a mount with revisions on disk."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = DatasetStore(str(directory))
        self.whole = WholeTree(NamespaceTree(0, 0, 0))
        self.opened: list[int] = []
        """The threads in which catalogs were looked for."""
        self._within = self.store.directory_of(MANIFEST)
        origin = SimpleNamespace(source=None)
        dataset = cast(Dataset, SimpleNamespace(manifest=MANIFEST, origin=origin))
        find_revision = self.store.find_revision

        def find(manifest: Manifest, revision: str) -> str | None:
            self.opened.append(threading.get_ident())
            return find_revision(manifest, revision)

        def files(_dataset: Dataset, slot: int, _file: str) -> DatasetFiles:
            return cast(DatasetFiles, SimpleNamespace(dataset=SimpleNamespace(slot=slot)))

        monkeypatch.setattr(self.store, "find_revision", find)
        self.older = OlderRevisions(self.store, self.whole, {"team/data": dataset}.get, files)
        self.older.attach()

    def revision(self, name: str) -> None:
        CatalogWriter.create(f"{self._within}/{name}.sqlite", name, 0).seal()

    def is_stale(self, slot: int) -> bool:
        try:
            self.whole.files(nodeid_of(slot, ROOT_ID))
        except OSError:
            return True
        return False


def test_a_revision_is_looked_for_and_numbered_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(tmp_path, monkeypatch)
    shown.revision("r1")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _fd: synced.append(threading.get_ident()))
    slot = trio.run(shown.older.find, "team", "data@r1")
    assert slot == shown.store.number("dataset team/data@r1")
    assert not shown.is_stale(slot)
    assert shown.opened
    assert synced
    assert threading.get_ident() not in shown.opened + synced


def test_who_stands_in_a_revision_that_is_gone_has_it_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Shown(tmp_path, monkeypatch)
    slot = shown.store.number("dataset team/data@r1")
    assert all(shown.is_stale(slot) for _step in range(3))
    assert len(shown.opened) == 1
    shown.older.drop("team/other")
    assert shown.is_stale(slot)
    assert len(shown.opened) == 1
    shown.revision("r1")
    shown.older.drop("team/data")  # shown anew, it may have it again
    assert not shown.is_stale(slot)


def test_a_revision_that_is_there_again_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(tmp_path, monkeypatch)
    slot = shown.store.number("dataset team/data@r1")
    assert shown.is_stale(slot)
    shown.revision("r1")
    assert trio.run(shown.older.find, "team", "data@r1") == slot
    assert not shown.is_stale(slot)
    shown.whole.drop(slot)
    assert not shown.is_stale(slot), "it is opened again"


def test_a_revision_is_found_while_catalogs_are_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebuild or the measure of a preheat takes minutes, and whoever looks a name up waits in the kernel."""
    shown = Shown(tmp_path, monkeypatch)
    shown.revision("r1")

    async def look_up() -> int | None:
        scans = [object() for _ in range(int(CATALOG.total_tokens))]
        for scan in scans:
            CATALOG.acquire_on_behalf_of_nowait(scan)
        try:
            with trio.fail_after(10):
                return await shown.older.find("team", "data@r1")
        finally:
            for scan in scans:
                CATALOG.release_on_behalf_of(scan)

    assert trio.run(look_up) is not None


def test_a_revision_whose_catalog_could_not_be_opened_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of a descriptor, say: it is stale for now, and its name is not told not to be there."""
    shown = Shown(tmp_path, monkeypatch)
    shown.revision("r1")
    slot = shown.store.number("dataset team/data@r1")
    with monkeypatch.context() as failing:

        def refuse(path: str) -> None:
            raise CatalogError(f"catalog {path}: unable to open database file")

        failing.setattr("dsfs.datasets.store.Catalog", refuse)
        assert shown.is_stale(slot)
        failing.setattr(shown.store, "find_revision", lambda *_args: pytest.fail("with each step anew"))
        assert shown.is_stale(slot)
        failing.undo()
        failing.setattr("dsfs.datasets.store.Catalog", refuse)
        with pytest.raises(CatalogError):
            trio.run(shown.older.find, "team", "data@r1")
    later_s = time.monotonic() + 11
    monkeypatch.setattr("time.monotonic", lambda: later_s)
    assert not shown.is_stale(slot)
