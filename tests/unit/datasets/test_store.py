"""Numbers that are never given twice, and catalogs that are kept or go."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.catalog.writer import CatalogWriter
from dsfs.datasets.store import KEPT_REVISIONS, DatasetStore, dataset_key, new_revision
from dsfs.errors import CatalogError
from dsfs.manifest.schema import Manifest, SourceSpec


def dataset(name: str = "imagenet", uri: str = "s3://bucket/prefix", **options: str) -> Manifest:
    return Manifest(namespace="vision", name=name, source=SourceSpec(type="S3", uri=uri, options=options))


@given(st.lists(st.one_of(st.sampled_from(["a/a", "a/b", "b/a", "a", "b"]), st.none()), max_size=30))
@settings(deadline=None, max_examples=50)
def test_a_number_is_given_once_and_is_on_disk_first(
    tmp_path_factory: pytest.TempPathFactory, asked: list[str | None]
) -> None:
    """None stands for a restart."""
    directory = tmp_path_factory.mktemp("store")
    store = DatasetStore(str(directory))
    given_out: dict[str, int] = {}
    for what in asked:
        if what is None:
            store = DatasetStore(str(directory))
            continue
        number = store.number(what)
        assert json.loads((directory / "numbers.json").read_text())[what] == number
        assert given_out.setdefault(what, number) == number
        assert number >= 2  # 1 is every root
    assert len(set(given_out.values())) == len(given_out)


def test_threads_that_ask_at_once_get_numbers_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, fsync = threading.Barrier(2), os.fsync

    def slow(fd: int) -> None:
        try:
            both.wait(0.3)
        except threading.BrokenBarrierError:
            pass  # the other one waits for this one to be written down
        fsync(fd)

    store = DatasetStore(str(tmp_path))
    monkeypatch.setattr(os, "fsync", slow)
    with ThreadPoolExecutor(2) as threads:
        numbers = dict(zip("ab", threads.map(store.number, "ab"), strict=True))
    assert len(set(numbers.values())) == 2
    assert json.loads((tmp_path / "numbers.json").read_text()) == numbers


def test_numbers_that_cannot_be_read_are_an_error_and_no_new_beginning(tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_text("{")
    with pytest.raises(CatalogError, match=r"numbers\.json is damaged"):
        DatasetStore(str(tmp_path))


def test_another_source_under_the_same_name_is_another_place() -> None:
    keys = {
        dataset_key(dataset()),
        dataset_key(dataset("other")),
        dataset_key(dataset(uri="s3://bucket/other")),
        dataset_key(dataset(region="eu")),
    }
    assert len(keys) == 4
    assert all(key.startswith("vision.") and "/" not in key for key in keys)
    assert dataset_key(dataset()) == dataset_key(dataset())


def catalog(directory: str, revision: str, *, sealed: bool) -> str:
    writer = CatalogWriter.create(f"{directory}/{revision}.sqlite", revision, 0)
    if sealed:
        writer.seal()
    else:
        writer.close()
    return writer.file


def test_the_newest_sealed_revision_is_found_and_old_ones_go(tmp_path: Path) -> None:
    store, manifest = DatasetStore(str(tmp_path)), dataset()
    directory = store.directory_of(manifest)
    assert store.newest_sealed(manifest) is None
    sealed = [catalog(directory, new_revision(float(second)), sealed=True) for second in range(KEPT_REVISIONS + 2)]
    unfinished = catalog(directory, new_revision(1000.0), sealed=False)
    Path(directory, f"{new_revision(2000.0)}.sqlite").write_text("no catalog")
    assert store.newest_sealed(manifest) == sealed[-1]
    shown = catalog(directory, new_revision(3000.0), sealed=False)
    store.clean(manifest, [shown])
    left = {os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".sqlite")}
    assert left == {shown, *sealed[-KEPT_REVISIONS:]}
    assert unfinished not in left


def test_revisions_sort_as_they_were_made() -> None:
    times = [0.0, 0.001, 0.999, 1.0, 59.5, 60.0, 86400.0, 1.7e9, 1.7e9 + 0.002]
    assert [new_revision(at) for at in times] == sorted({new_revision(at) for at in times})
