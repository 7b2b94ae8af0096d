"""A Git repository at one commit. Version tag: the blob's object id, or ``lfs:`` and the sha256 of an LFS object.

There is no working copy: trees come without their blobs when a revision is listed, blobs many at a time when they are
wanted. Git's protocol has no way to ask for sizes alone, so listing brings each blob once: in batches (20,000 blobs,
118 MB: 2.6 s over git http-backend on loopback), kept on disk within a budget, where the first reads find them.

What is read is found by its number alone, so a branch that moves, or is forced to another place, changes nothing that
was listed, as long as the server has the objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from dsfs.errors import ConfigError, SourceChanged, SourceMissing, SourceRefused
from dsfs.manifest.schema import SourceSpec
from dsfs.model import Kind, ListingPage, SourceObject
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Sink
from dsfs.sources.digest import Digest, git_blob
from dsfs.sources.git_access import Access
from dsfs.sources.git_address import Address, parse_address
from dsfs.sources.git_objects import POINTER_MAX_BYTES, Pointer, TreeEntry, parse_pointer
from dsfs.sources.git_repository import Once, Repository, check_revision, is_short_for
from dsfs.sources.git_tree import CommitTree, Directory, Module, is_directory, is_executable, is_symlink, settings_in
from dsfs.sources.options import UnknownOption
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS, Timeouts

PAGE_NAMES: Final = 4096
SIBLINGS: Final = 256  # whose sizes are asked for together with the one that somebody looks at
NEAR_BLOBS: Final = 64
NEAR_BYTES: Final = 4 * MiB
_LFS: Final = "lfs:"
_OPTIONS: Final = ("branch", "commit", "depth", "revision", "submodules", "syncMode")
_ON: Final = frozenset({"true", "1", "yes", "on", "recursive"})
_OFF: Final = frozenset({"", "false", "0", "no", "off", "none"})


def git_source(spec: SourceSpec, credentials: Mapping[str, str], **_: object) -> GitSource:
    """For type GIT. Raises ConfigError.

    Options: ``revision`` (branch, tag, commit or ``refs/…``), or as in BaizeAI/dataset ``branch`` and ``commit`` (which
    wins); ``submodules`` (off; there, any text at all turns it on, here "false" does not); ``depth``, which means
    nothing without a history.
    """
    if unknown := sorted(set(spec.options) - set(_OPTIONS)):
        raise UnknownOption("GIT", unknown[0], ", ".join(_OPTIONS))
    options = spec.options
    if not options.get("depth", "").strip().lstrip("-").isdigit() and options.get("depth", "").strip():
        raise ConfigError("GIT: option depth must be a number (it means nothing here: one commit is read)")
    submodules = options.get("submodules", "").strip().lower()
    if submodules not in _ON | _OFF:
        raise ConfigError("GIT: option submodules must be true or false")
    named = (options.get(key, "").strip() for key in ("commit", "revision", "branch"))
    revision = next((text for text in named if text), "")
    access = Access(parse_address(spec.uri), credentials)
    if access.key and access.address.scheme != "ssh" and not access.password:
        raise ConfigError("GIT: ssh-privatekey is for ssh:// and git@host:path (give token, or username and password)")
    return GitSource(access, check_revision(revision) if revision else "", submodules=submodules in _ON)


class GitSource:
    """One revision of a repository: pinned when it is first looked at, the same until ``close``.

    ``work_directory`` is where git's objects lie meanwhile: a private directory in it, at most about 0.5 GB and one
    batch while blobs are small, removed at ``close``. Where a commit's first digits are the revision, the history comes
    to that: a third of a kilobyte for each commit, all that there is from a server that can leave out nothing.
    """

    def __init__(
        self,
        access: Access,
        revision: str = "",
        *,
        submodules: bool = False,
        work_directory: str | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self.uri = access.address.shown
        self.identity = f"git:{access.address.shown}"
        self._access = access
        self._revision = revision
        self._submodules = submodules
        self._work_directory = work_directory
        self._timeouts = timeouts
        self._repositories: dict[str, Repository] = {}
        self._tree: CommitTree | None = None
        self._pinning: Once[CommitTree] = Once()
        self._pinning_to_read: Once[CommitTree] = Once()
        self._mentions_lfs: dict[str, bool] = {}
        self._pointers: dict[str, Pointer | None] = {}
        self._alone = False  # the tree cannot be had: blobs are fetched without those near them

    def go_on_at(self, revision: str) -> None:
        """See ``NamesRevisions``."""
        self._revision = revision

    def read_at(self, revision: str) -> None:
        """See ``LooksUpRevisions``. A branch or tag is looked up as ever: should the commit be gone, it is not."""
        if is_short_for(self._revision, revision):
            self._revision = revision

    @property
    def revision(self) -> str:
        """The commit, once it is known."""
        return "" if self._tree is None else self._tree.main.pin.commit

    def repositories(self) -> list[Repository]:
        """Those that were opened, for tests and statistics."""
        return list(self._repositories.values())

    # -- Source ---------------------------------------------------------------------------------------------------

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        """See ``Source``. Sizes that are not known yet are left open: a listing must not wait for blobs."""
        tree = await self._pinned()
        found = await tree.directory(directory)
        if found is None:
            raise SourceMissing(f"{self.uri}: commit {self.revision[:12]} has no directory {directory!r}")
        entries = list(found.names.values())
        links = await found.module.repository.blobs.contents([e.oid for e in entries if is_symlink(e)])
        for start in range(0, len(entries), PAGE_NAMES):
            yield ListingPage(tuple(self._known(found, entry, links) for entry in entries[start : start + PAGE_NAMES]))
        yield ListingPage((), (directory,))

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        """See ``Source``. With sizes; the first page is empty, and says that the commit is here."""
        tree = await self._pinned()
        yield ListingPage(())
        waiting = deque([await tree.root()])
        while waiting:
            # As many directories as make one fetch of blobs, or a part of a large one.
            batch: list[Directory] = []
            limit = waiting[0].module.repository.blobs.batch_blobs()
            while waiting and (not batch or sum(len(d.names) for d in batch) + len(waiting[0].names) <= limit):
                batch.append(waiting.popleft())
            wanted = [(directory, entry) for directory in batch for entry in directory.names.values()]
            for start in range(0, len(wanted), limit):
                yield ListingPage(tuple(await self._resolved(wanted[start : start + limit])))
            yield ListingPage((), tuple(directory.path for directory in batch))
            for directory in batch:
                below = [entry for entry in directory.names.values() if is_directory(entry)]
                waiting.extend(child for child in await tree.children(directory, below) if child is not None)

    async def stat(self, path: str) -> SourceObject | None:
        """See ``Source``. Learns the sizes of the names behind this one too, with the same command."""
        tree = await self._pinned()
        if not path:
            return SourceObject("", Kind.DIRECTORY, 0, tree.main.pin.time_ns)
        found = await tree.find(path)
        if found is None:
            return None
        directory, entry = found
        if not is_directory(entry) and entry.oid not in directory.module.repository.blobs.sizes:
            names = list(directory.names.values())
            place = names.index(entry)
            near = [(directory, other) for other in names[place : place + SIBLINGS] if not is_directory(other)]
            await self._learn(near)
        return (await self._resolved([found]))[0]

    def digest_of(self, obj: SourceObject) -> Digest | None:
        """See ``DigestSource``."""
        if obj.version_tag.startswith(_LFS):
            return Digest("sha256", obj.version_tag.removeprefix(_LFS))
        return git_blob(obj.version_tag) if obj.version_tag else None

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        """See ``Source``. The path only says which submodule to look in first."""
        for repository in (candidates := await self._candidates(obj.path)):
            try:
                if obj.version_tag.startswith(_LFS):
                    await self._configure_lfs()
                    pointer = Pointer(obj.version_tag.removeprefix(_LFS), obj.size or 0)
                    await repository.lfs.read(pointer, wanted, sink)
                else:
                    await self._read_blob(repository, obj, wanted, sink)
                return
            except SourceChanged:  # nothing was written
                if repository is candidates[-1]:
                    raise

    async def close(self) -> None:
        """See ``Source``."""
        for repository in self._repositories.values():
            await repository.release()

    # -- the commit -----------------------------------------------------------------------------------------------

    async def _pinned(self) -> CommitTree:
        """For a listing, which may take its time."""
        pin = partial(self._pin, search=True)
        return self._tree if self._tree is not None else await self._pinning.do(pin)

    async def _pinned_to_read(self) -> CommitTree:
        """A read would be out of time before a long history has come, and the next one would begin with nothing."""
        pin = partial(self._pin, search=False)
        return self._tree if self._tree is not None else await self._pinning_to_read.do(pin)

    async def _pin(self, *, search: bool) -> CommitTree:
        repository = await self._main()
        pin = await repository.pin(self._revision, search=search)
        if self._tree is None:
            self._tree = CommitTree(repository, pin, self._repository if self._submodules else None)
        return self._tree

    async def _main(self) -> Repository:
        """The dataset's own repository. Submodules come after it, and theirs lie in the same place."""
        if not self._repositories:
            await Repository.make_room(self._work_directory)
        return self._repository(self._access.address)

    def _repository(self, address: Address) -> Repository:
        found = self._repositories.get(address.url)
        if found is None:
            access = self._access if address.url == self._access.address.url else self._access.for_other(address)
            found = Repository.acquire(access, self._timeouts, self._work_directory)
            self._repositories[address.url] = found
        return found

    async def _candidates(self, path: str) -> list[Repository]:
        """Where an object of this path may be: first where the path is now, then anywhere, as it may be older."""
        main = await self._main()
        if not self._submodules:
            return [main]
        found = await (await self._pinned_to_read()).find(path)
        first = main if found is None else found[0].module.repository
        return [first, *(other for other in self._repositories.values() if other is not first)]

    async def _configure_lfs(self) -> None:
        """``lfs.url`` of .lfsconfig says where the objects are; git-lfs looks there too."""
        await self._pinned_to_read()
        for module in self._modules():
            lfs = module.repository.lfs
            if lfs.configured_by != module.pin.commit:
                settings = dict(await settings_in(module.repository, module.pin, ".lfsconfig"))
                lfs.configured, lfs.configured_by = settings.get("lfs.url"), module.pin.commit

    def _modules(self) -> list[Module]:
        assert self._tree is not None
        found = [self._tree.main]
        for module in found:  # grows while it is walked
            found.extend(inner for inner in module.inner.values() if inner is not None)
        return found

    async def _read_blob(self, repository: Repository, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        near = [] if await repository.blobs.has(obj.version_tag) else await self._near(repository, obj)
        try:
            await repository.blobs.read(obj.version_tag, obj.size or 0, wanted, sink, near)
        except SourceChanged:
            # A server that gives nothing but whole branches: have this one, and look there.
            if self._tree is not None:
                raise
            await self._pinned_to_read()
            await repository.blobs.read(obj.version_tag, obj.size or 0, wanted, sink)

    async def _near(self, repository: Repository, obj: SourceObject) -> list[str]:
        """Blobs of the same directory that will be wanted soon: a command for 64 costs little more than for one.

        Sizes may not be known (after a restart), so it is taken that files which lie together are much alike.
        """
        count = min(NEAR_BLOBS, NEAR_BYTES // max(obj.size or 0, 1))
        if count < 2 or self._alone:
            return []
        try:
            found = await (await self._pinned_to_read()).find(obj.path)
        except (SourceMissing, SourceRefused):
            self._alone = True  # the revision is not there any more; what was listed may be
            return []
        if found is None or found[1].oid != obj.version_tag or found[0].module.repository is not repository:
            return []
        entries = list(found[0].names.values())
        place = entries.index(found[1]) + 1
        return [entry.oid for entry in entries[place : place + count] if not is_directory(entry)]

    # -- entries become objects -----------------------------------------------------------------------------------

    def _known(self, directory: Directory, entry: TreeEntry, links: Mapping[str, bytes]) -> SourceObject:
        """What can be said of an entry without asking for its blob."""
        path, time_ns = directory.child_path(entry.name), directory.module.pin.time_ns
        if is_directory(entry):
            return SourceObject(path, Kind.DIRECTORY, 0, time_ns)
        if is_symlink(entry):
            return _symlink(path, time_ns, entry, links[entry.oid])
        size = directory.module.repository.blobs.sizes.get(entry.oid)
        program = is_executable(entry)
        if size is None:
            return SourceObject(path, Kind.FILE, None, time_ns, executable=program)
        if size < POINTER_MAX_BYTES and self._may_have_lfs(directory):
            if entry.oid not in self._pointers:
                return SourceObject(path, Kind.FILE, None, time_ns, executable=program)
            if (pointer := self._pointers[entry.oid]) is not None:
                return SourceObject(
                    path, Kind.FILE, pointer.size_bytes, time_ns, f"{_LFS}{pointer.sha256}", None, program
                )
        return SourceObject(path, Kind.FILE, size, time_ns, entry.oid, None, program)

    async def _learn(self, wanted: Iterable[tuple[Directory, TreeEntry]]) -> None:
        """Have the sizes of these, and the .gitattributes that speak of them, with as few commands as possible."""
        by_repository: dict[Repository, list[str]] = {}
        for directory, entry in wanted:
            if not is_directory(entry):
                oids = by_repository.setdefault(directory.module.repository, [])
                oids += [*directory.attributes, entry.oid]
        for repository, oids in by_repository.items():
            await repository.blobs.learn_sizes(oids)

    async def _resolved(self, wanted: Sequence[tuple[Directory, TreeEntry]]) -> list[SourceObject]:
        """Entries with size, version and target. Raises SourceError."""
        await self._learn(wanted)
        asked: dict[Repository, list[str]] = {}
        for directory, entry in wanted:
            oids = asked.setdefault(directory.module.repository, [])
            oids += [oid for oid in directory.attributes if oid not in self._mentions_lfs]
            if is_symlink(entry):
                oids.append(entry.oid)
        contents: dict[Repository, dict[str, bytes]] = {}
        for repository, oids in asked.items():
            contents[repository] = found = await repository.blobs.contents(oids)
            self._mentions_lfs |= {oid: b"filter=lfs" in content for oid, content in found.items()}
        await self._look_for_pointers(wanted)
        objects = []
        for directory, entry in wanted:
            objects.append(self._known(directory, entry, contents[directory.module.repository]))
        return objects

    async def _look_for_pointers(self, wanted: Sequence[tuple[Directory, TreeEntry]]) -> None:
        """Small files below a .gitattributes that speaks of LFS may stand for larger ones."""
        small: dict[Repository, list[str]] = {}
        for directory, entry in wanted:
            if is_directory(entry) or is_symlink(entry) or entry.oid in self._pointers:
                continue
            repository = directory.module.repository
            if repository.blobs.sizes[entry.oid] < POINTER_MAX_BYTES and self._may_have_lfs(directory):
                small.setdefault(repository, []).append(entry.oid)
        for repository, oids in small.items():
            found = await repository.blobs.contents(oids)
            self._pointers |= {oid: parse_pointer(content) for oid, content in found.items()}

    def _may_have_lfs(self, directory: Directory) -> bool:
        """Whether a .gitattributes of this directory or one above it speaks of LFS, or was not read yet."""
        return any(self._mentions_lfs.get(oid, True) for oid in directory.attributes)


def _symlink(path: str, time_ns: int, entry: TreeEntry, content: bytes) -> SourceObject:
    target = content.decode("utf-8", "surrogateescape")
    return SourceObject(path, Kind.SYMLINK, len(content), time_ns, entry.oid, target)
