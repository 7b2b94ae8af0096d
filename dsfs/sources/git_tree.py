"""The tree of one commit, submodules as parts of it: a path becomes an entry of some repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import structlog

from dsfs.errors import ConfigError, SourceMissing
from dsfs.sources.git_address import Address
from dsfs.sources.git_objects import GITLINK, SYMLINK, TREE, TreeEntry
from dsfs.sources.git_repository import Pin, Repository

log = structlog.get_logger()

SUBMODULES_DEEP: Final = 8
_ATTRIBUTES: Final = ".gitattributes"

Open = Callable[[Address], Repository]


class Module:
    """A repository as a part of the tree: the dataset's own, or a submodule's at the commit that its parent names."""

    def __init__(self, repository: Repository, pin: Pin, depth: int = 0) -> None:
        self.repository = repository
        self.pin = pin
        self.depth = depth
        self.inner: dict[str, Module | None] = {}
        """Submodules that were opened, by their path in this repository; None for those without an address."""
        self.addresses: Mapping[str, Address] | None = None


class Directory(NamedTuple):
    """A directory: ``path`` from the root of the dataset, ``inside`` from that of its module."""

    module: Module
    path: str
    inside: str
    names: Mapping[str, TreeEntry]
    attributes: tuple[str, ...]
    """Ids of the .gitattributes of this directory and those above it in the module."""

    def child_path(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


class CommitTree:
    """``open_module`` gives the repository of a submodule; None: those are empty directories, as git leaves them."""

    def __init__(self, repository: Repository, pin: Pin, open_module: Open | None) -> None:
        self.main = Module(repository, pin)
        self._open_module = open_module

    async def root(self) -> Directory:
        return await self._root_of(self.main, "")

    async def find(self, path: str) -> tuple[Directory, TreeEntry] | None:
        """The entry of a path that is not "", and the directory it is in; None when there is none."""
        directory: Directory | None = await self.root()
        parts = path.split("/")
        for index, part in enumerate(parts):
            entry = directory.names.get(part) if directory is not None else None
            if directory is None or entry is None:
                return None
            if index == len(parts) - 1:
                return directory, entry
            (directory,) = await self.children(directory, [entry])
        return None

    async def directory(self, path: str) -> Directory | None:
        """None when there is no such directory."""
        if not path:
            return await self.root()
        found = await self.find(path)
        return None if found is None else (await self.children(found[0], [found[1]]))[0]

    async def children(self, parent: Directory, entries: Sequence[TreeEntry]) -> list[Directory | None]:
        """The directories that these entries of ``parent`` are; None for what is none."""
        plain = [entry for entry in entries if is_directory(entry) and entry.mode != GITLINK]
        trees = await parent.module.repository.trees([entry.oid for entry in plain])
        names = {entry.name: tree for entry, tree in zip(plain, trees, strict=True)}
        found: list[Directory | None] = []
        for entry in entries:
            if entry.mode == GITLINK:
                found.append(await self._submodule(parent, entry))
            elif entry.name in names:
                inside = f"{parent.inside}/{entry.name}" if parent.inside else entry.name
                path = parent.child_path(entry.name)
                found.append(_directory(parent.module, path, inside, names[entry.name], parent.attributes))
            else:
                found.append(None)
        return found

    async def _root_of(self, module: Module, path: str) -> Directory:
        (names,) = await module.repository.trees([module.pin.tree])
        return _directory(module, path, "", names, ())

    async def _submodule(self, parent: Directory, entry: TreeEntry) -> Directory:
        path, module = parent.child_path(entry.name), parent.module
        inside = f"{parent.inside}/{entry.name}" if parent.inside else entry.name
        inner = await self._inner(module, inside, entry.oid, path) if self._open_module is not None else None
        return Directory(module, path, inside, {}, ()) if inner is None else await self._root_of(inner, path)

    async def _inner(self, module: Module, inside: str, commit: str, path: str) -> Module | None:
        assert self._open_module is not None
        if inside not in module.inner:
            if module.addresses is None:
                module.addresses = await _addresses(module)
            address = module.addresses.get(inside)
            if address is None or module.depth >= SUBMODULES_DEEP:
                shown = module.repository.address.shown
                log.warning("submodule without an address, shown empty", source=shown, path=path)
                module.inner[inside] = None
            else:
                repository = self._open_module(address)
                try:
                    pin = await repository.pin(commit)
                except SourceMissing as error:
                    raise SourceMissing(f"submodule {path}: {error}") from error
                module.inner[inside] = Module(repository, pin, module.depth + 1)
        return module.inner[inside]


def is_directory(entry: TreeEntry) -> bool:
    return entry.mode in (TREE, GITLINK)


def is_symlink(entry: TreeEntry) -> bool:
    return entry.mode == SYMLINK


def is_executable(entry: TreeEntry) -> bool:
    return entry.mode >> 12 == 0o10 and bool(entry.mode & 0o111)


def _directory(
    module: Module, path: str, inside: str, names: Mapping[str, TreeEntry], above: tuple[str, ...]
) -> Directory:
    own = names.get(_ATTRIBUTES)
    return Directory(module, path, inside, names, above if own is None or is_directory(own) else (*above, own.oid))


async def _addresses(module: Module) -> Mapping[str, Address]:
    """.gitmodules: path → repository. What is not an address that we follow is left out."""
    repository = module.repository
    settings = await settings_in(repository, module.pin, ".gitmodules")
    paths = {key[len("submodule.") : -len(".path")]: value for key, value in settings if key.endswith(".path")}
    urls = {key[len("submodule.") : -len(".url")]: value for key, value in settings if key.endswith(".url")}
    found = {}
    for name, path in paths.items():
        try:
            if name in urls:
                found[path.strip("/")] = repository.address.relative(urls[name])
        except ConfigError as error:
            log.warning("submodule not followed", source=repository.address.shown, path=path, reason=str(error))
    return found


async def settings_in(repository: Repository, pin: Pin, name: str) -> list[tuple[str, str]]:
    """Key and value of each line of a file in git's configuration format, at the root of a commit."""
    (names,) = await repository.trees([pin.tree])
    entry = names.get(name)
    if entry is None or is_directory(entry) or is_symlink(entry):
        return []
    content = (await repository.blobs.contents([entry.oid]))[entry.oid]
    output = await repository.program.local(["config", "--no-includes", "--file=-", "--null", "--list"], content)
    found = []
    for setting in output.stdout.decode("utf-8", "surrogateescape").split("\0"):
        key, newline, value = setting.partition("\n")
        if newline:
            found.append((key, value))
    return found
