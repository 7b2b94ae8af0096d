"""What is written down about datasets: slots, namespaces' numbers, and which catalogs there are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable
from contextlib import closing, suppress

from dsfs.catalog.lookup import Catalog
from dsfs.errors import CatalogError
from dsfs.manifest.schema import Manifest

KEPT_REVISIONS = 3
"""Sealed revisions of a dataset that stay on disk, so that an origin that is gone can still be listed."""


class DatasetStore:
    """Beside the catalogs. A number is on disk before it is first shown, and is never given to anything else.

    ``spare`` is a directory for catalogs where this one takes none: of a server that took over, and goes on.
    """

    def __init__(self, directory: str, spare: str | None = None) -> None:
        self.directory = directory
        self._spare = spare
        self._file = f"{directory}/numbers.json"
        self._numbering = threading.Lock()  # held from reading the numbers to writing one more
        try:
            with open(self._file, encoding="utf-8") as file:
                self._numbers: dict[str, int] = json.load(file)
        except FileNotFoundError:
            self._numbers = {}
        except ValueError as error:
            raise CatalogError(
                f"{self._file} is damaged ({error}); unmount, remove {directory} and mount again"
            ) from error

    def number(self, what: str) -> int:
        """The number of a dataset (its slot) or of a namespace; from 2, as 1 is every root. Any thread may ask; a new
        one waits for the disk. Raises OSError when that refuses."""
        return self._numbers.get(what) or self._give(what)

    def _give(self, what: str) -> int:
        with self._numbering:
            known = self._numbers.get(what)  # another thread may have been quicker
            if known is None:
                known = max(self._numbers.values(), default=1) + 1
                numbers = {**self._numbers, what: known}
                temporary = f"{self._file}.new"
                with open(temporary, "w", encoding="utf-8") as file:
                    json.dump(numbers, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, self._file)
                self._numbers = numbers  # not before: whoever asks again after a full disk must not get it from memory
            return known

    def what_has(self, number: int) -> str | None:
        """What a number was given to."""
        return next((what for what, given in self._numbers.items() if given == number), None)

    def directory_of(self, manifest: Manifest) -> str:
        """Where a dataset's catalogs lie; another source under the same name is another place."""
        path = f"{self.directory}/{dataset_key(manifest)}"
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def spare_of(self, manifest: Manifest) -> str | None:
        """As ``directory_of``, in the spare directory."""
        if self._spare is None:
            return None
        path = f"{self._spare}/{dataset_key(manifest)}"
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def file_of(self, manifest: Manifest, name: str) -> str:
        """Where a catalog lies, from its name; it need not be there."""
        found = [path for path in self._catalogs(manifest) if os.path.basename(path) == f"{name}.sqlite"]
        return found[0] if found else f"{self.directory}/{dataset_key(manifest)}/{name}.sqlite"

    def newest_sealed(self, manifest: Manifest, among: Collection[str] | None = None) -> str | None:
        """The catalog of the latest revision that is whole; ``among`` some, by their names."""
        for path in self._catalogs(manifest):
            if among is not None and os.path.basename(path).removesuffix(".sqlite") not in among:
                continue
            try:
                catalog = Catalog(path)
            except CatalogError:
                continue
            catalog.close()
            if catalog.sealed:
                return path
        return None

    def find_revision(self, manifest: Manifest, revision: str) -> str | None:
        """The catalog of a revision that is still known, by its name or by its source's.

        Raises CatalogError where none has it and one cannot be opened, which may be the one.
        """
        failure = None
        for path in self._catalogs(manifest):
            try:
                catalog = Catalog(path)
            except CatalogError as error:
                if os.path.exists(path):  # else it was removed meanwhile
                    failure = error
                continue
            catalog.close()
            if catalog.sealed and revision in (catalog.revision, catalog.name):
                return path
        if failure is not None:
            raise failure
        return None

    def adopt(self, catalog: str, manifest: Manifest) -> str:
        """Copy another dataset's sealed catalog for this one; its name here. Raises CatalogError when the disk refuses.

        With its time: the copy was listed when that was.

        Through SQLite, as a part of it may be in its log only.
        """
        name = os.path.basename(catalog)
        path = f"{self.directory_of(manifest)}/{name}"
        try:
            with closing(sqlite3.connect(catalog)) as source, closing(sqlite3.connect(f"{path}.new")) as copy:
                source.backup(copy)
            os.utime(f"{path}.new", (time.time(), listed_s(catalog)))
            os.rename(f"{path}.new", path)
        except (sqlite3.Error, OSError) as error:
            raise CatalogError(f"{manifest.id}: its catalog cannot be copied: {error}") from error
        return name.removesuffix(".sqlite")

    def clean(self, manifest: Manifest, keep: Iterable[str]) -> None:
        """Remove what a crawl left unfinished, and revisions beyond the newest few."""
        kept = 0
        for path in self._catalogs(manifest):
            if path in keep:
                continue
            try:
                catalog = Catalog(path)
                sealed = catalog.sealed
                catalog.close()
            except CatalogError:
                sealed = False
            if sealed and kept < KEPT_REVISIONS:
                kept += 1
                continue
            remove_catalog(path)

    def _catalogs(self, manifest: Manifest) -> list[str]:
        found = []
        for directory in (self.directory, self._spare):
            within = f"{directory}/{dataset_key(manifest)}"
            if directory is not None and os.path.isdir(within):
                found += [f"{within}/{name}" for name in os.listdir(within) if name.endswith(".sqlite")]
        return sorted(found, key=os.path.basename, reverse=True)


def listed_s(path: str) -> float:
    """When the revision of a sealed catalog was listed, or found not to have changed, last: Unix time.

    The file's own time, as nothing is written into a sealed catalog. 0 when it cannot be looked at.
    """
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def note_listed(shown: str, same: str) -> None:
    """The source was listed anew, into ``same``, and nothing has changed: what is shown was listed now."""
    with suppress(OSError):  # this server knows it, the next one will not
        os.utime(shown)
    remove_catalog(same)


def remove_catalog(path: str) -> None:
    """A catalog that nobody looks at, with what SQLite has put beside it."""
    for leftover in (path, f"{path}-wal", f"{path}-shm"):
        if os.path.exists(leftover):
            os.unlink(leftover)


def dataset_key(manifest: Manifest) -> str:
    """A dataset at its source, as a file name: readable, and unique by a hash of what it is made from."""
    source = manifest.source
    made_from = [manifest.namespace, manifest.name, source.type, source.uri, sorted(source.options.items())]
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9.-]", "_", manifest.id.replace("/", "."))[:80]
    return f"{readable}.{digest[:16]}"


def new_revision(now_s: float) -> str:
    """The name of a revision of a source that has none of its own: when it was listed, UTC."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_s)) + f".{int(now_s * 1000) % 1000:03d}Z"
