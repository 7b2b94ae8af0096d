"""One remote repository: which commit a revision is, its trees on this disk, its blobs when they are asked for."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from cachetools import LRUCache

from dsfs.errors import ConfigError, SourceMissing, SourceUnavailable, SourceUnsupported
from dsfs.sources.git_access import Access
from dsfs.sources.git_blobs import Blobs, Store
from dsfs.sources.git_lfs import LfsClient
from dsfs.sources.git_objects import Commit, TreeEntry, parse_commit, parse_tree
from dsfs.sources.git_program import FilterRefused, GitProgram, NoShallow, RefGone
from dsfs.sources.git_work import WorkDirectory, remove_orphans
from dsfs.sources.timeouts import Timeouts

T = TypeVar("T")

_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_ABBREVIATED = re.compile(r"[0-9a-f]{4,63}")
_SEARCHED_DIGITS: Final = 7  # as many as git shows at least; with fewer it may well be a year, or a word
# git check-ref-format, and nothing that git could take for an option or a pattern
_REF = re.compile(r"(?!-)(?!.*(?:\.\.|@\{|//|/\.))[^\x00-\x20\x7f~^:?*\[\\]+(?<![./])(?<!\.lock)")
_EVERY: Final = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_UNFILTERED: Final = re.compile(r"filtering not (recognized|supported) by server")
_TREES_KEPT: Final = 4096


def check_revision(text: str) -> str:
    """The text itself. Raises ConfigError for what can be no name of a branch, tag or commit."""
    if not _REF.fullmatch(text):
        raise ConfigError("GIT: the revision is no name of a branch, a tag or a commit")
    return text.lower() if _OID.fullmatch(text.lower()) else text


def is_short_for(revision: str, commit: str) -> bool:
    """Whether a revision is what ``Repository.pin`` may have searched for to find this commit."""
    return _ABBREVIATED.fullmatch(revision.lower()) is not None and commit.startswith(revision.lower())


class Pin(NamedTuple):
    """The commit that a revision was when it was asked for."""

    commit: str
    tree: str
    time_ns: int


class Once(Generic[T]):
    """Work that all who ask at one time share. Ends with the last of them; a failure is not kept."""

    def __init__(self) -> None:
        self._task: asyncio.Task[T] | None = None
        self._waiting = 0

    async def do(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = self._task
        if task is None or task.done():
            task = self._task = asyncio.create_task(work())
            self._waiting = 0
        self._waiting += 1
        try:
            return await asyncio.shield(task)
        finally:
            if task is self._task:
                self._waiting -= 1
                if not self._waiting and not task.done():
                    task.cancel()
                    self._task = None


def _no_work_directory(error: OSError) -> SourceUnavailable:
    return SourceUnavailable(f"no work directory for git: {os.strerror(error.errno or 0)}")


class Repository:
    """Shared by all sources of one URL with the same credentials, so that a resync fetches only what is new.

    Belongs to one event loop. ``acquire`` one, ``release`` it; the last release removes what is on disk.
    """

    _all: Final[dict[tuple[object, ...], Repository]] = {}

    def __init__(self, access: Access, timeouts: Timeouts, work_directory: str | None) -> None:
        self.address = access.address
        try:
            self._work = WorkDirectory(work_directory)
        except OSError as error:
            raise _no_work_directory(error) from error
        access.write_files(self._work.path)
        self.program = GitProgram(access, self._work.path, timeouts)
        self.blobs = Blobs(self.program, self._work.path, self._fetch_whole)
        self.lfs = LfsClient(self.program, timeouts)
        self._users = 0
        self._key: tuple[object, ...] = ()
        self._main: Store | None = None
        self._whole: Store | None = None
        self._history: Store | None = None  # of all branches and tags, once a short name of a commit was looked for
        self._pinned: dict[str, bool] = {}  # commits that were listed, and whether ``_whole`` has them
        self._fetching = asyncio.Lock()
        self._searching = asyncio.Lock()  # one of its own: who knows the commit does not wait for a history
        self._reading = asyncio.Lock()
        self._trees: LRUCache[str, dict[str, TreeEntry]] = LRUCache(_TREES_KEPT)

    @staticmethod
    async def make_room(work_directory: str | None) -> None:
        """Remove what owners that were killed have left there, in a thread. Raises SourceUnavailable."""
        try:
            await asyncio.to_thread(remove_orphans, work_directory)
        except OSError as error:
            raise _no_work_directory(error) from error

    @classmethod
    def acquire(cls, access: Access, timeouts: Timeouts, work_directory: str | None) -> Repository:
        """Takes nothing from the network; makes a directory."""
        loop = asyncio.get_running_loop()
        key = (loop, access.address.url, access.fingerprint, timeouts, work_directory)
        found = cls._all.get(key)
        if found is None:
            found = cls._all[key] = cls(access, timeouts, work_directory)
            found._key = key
        found._users += 1
        return found

    async def release(self) -> None:
        self._users -= 1
        if self._users:
            return
        self._all.pop(self._key, None)
        await self.lfs.close()
        await self.blobs.close()
        for store in {self._main, self._whole, self._history}:  # the history may be the main one
            if store is not None:
                await store.close()
        await self.program.close()
        await asyncio.to_thread(self._work.remove)

    # -- which commit ---------------------------------------------------------------------------------------------

    async def pin(self, revision: str, *, search: bool = True) -> Pin:
        """Look up a revision at the server, and have its commit and trees here. Raises SourceError.

        The server is asked each time, also for a commit that is here: it may not be shown to us any more.
        The first digits of a commit that is no tip are missing unless they may be searched for in the history.
        """
        oid = await self._resolve(revision, search=search)
        async with self._fetching:
            main = self._main
            if main is None:
                main = self._main = Store(self.program, f"{self._work.path}/trees", len(oid))
            if (await main.objects.info([oid]))[0] is None:
                await self._fetch(main, oid, "--filter=blob:none")
            self._pinned.setdefault(oid, False)
            return await self._peeled(main, oid, revision)

    async def _fetch_whole(self) -> None:
        """Have everything of the commits that were listed: see ``Blobs``."""
        async with self._fetching:
            for oid in [oid for oid, whole in self._pinned.items() if not whole]:
                if self._whole is None:
                    self._whole = Store(self.program, f"{self._work.path}/whole", len(oid))
                await self._fetch(self._whole, oid, "--no-filter")
                self._pinned[oid] = True
            self.blobs.complete = self._whole or self.blobs.complete

    async def _resolve(self, revision: str, *, search: bool) -> str:
        if _OID.fullmatch(revision):
            refs = await self._refs(["HEAD"])  # shows that we may, and in which format objects are named
            return revision
        if not revision or revision == "HEAD":
            wanted = ["HEAD"]
        elif revision.startswith("refs/"):
            wanted = [revision]
        else:
            wanted = [f"refs/heads/{revision}", f"refs/tags/{revision}", revision]  # as `git clone --branch`
        refs = await self._refs([*wanted, *(f"{name}^{{}}" for name in wanted)])
        for name in wanted:
            if name in refs:
                return refs.get(f"{name}^{{}}", refs[name])
        if not revision or revision == "HEAD":
            raise SourceMissing(f"{self.address.shown}: has no commits (or its HEAD names a branch that is not there)")
        if _ABBREVIATED.fullmatch(short := revision.lower()):
            refs = await self._refs([])
            found = {oid for oid in refs.values() if oid.startswith(short)}
            searched = search and len(short) >= _SEARCHED_DIGITS
            if not found and refs and searched:
                found = await self._commits_like(short, refs)
            if len(found) == 1:
                return found.pop()
            hint = "no commit of a branch or tag begins so" if searched else "no branch or tag is at such a commit"
            if len(short) < _SEARCHED_DIGITS:
                hint += f", and others are looked for by {_SEARCHED_DIGITS} digits or more"
            if found:
                hint = f"{len(found)} commits begin so: give more digits"
        else:
            hint = "name a branch, a tag, a commit or refs/…"
        raise SourceMissing(f"{self.address.shown}: has no revision {revision!r} ({hint})")

    async def _commits_like(self, short: str, refs: Mapping[str, str]) -> set[str]:
        """All commits of branches and tags whose numbers begin so. ``refs`` is what the server has: their history is
        fetched when it is looked for the first time, and afterwards what is new in it."""
        async with self._searching:
            for store in dict.fromkeys((self._history, self.blobs.complete)):
                if store is not None and (found := await self._begin_so(store, short)):
                    return found
            tips = {oid for name, oid in refs.items() if name.startswith(("refs/heads/", "refs/tags/"))}
            history = self._history
            if history is not None and None not in await history.objects.info(sorted(tips)):
                return set()
            if history is None:
                history = Store(self.program, f"{self._work.path}/history", len(min(refs.values())))
            words = await self._fetch_history(history)
            self._history = history
            if self._main is None and _UNFILTERED.search(words):
                self._main = self.blobs.complete = history  # all that there is has come: it need not come twice
            return await self._begin_so(history, short)

    async def _begin_so(self, store: Store, short: str) -> set[str]:
        command = [f"--git-dir={store.directory}", "rev-parse", f"--disambiguate={short}"]
        oids = (await self.program.local(command)).stdout.decode().split()
        infos = await store.objects.info(oids)
        return {oid for oid, info in zip(oids, infos, strict=True) if info and info.type in ("commit", "tag")}

    async def _fetch_history(self, store: Store) -> str:
        """Commits without their trees (a third of a kilobyte each) where the server can leave those out, a clone
        where it cannot leave out anything."""
        every = ["--prune", "dsfs", *_EVERY]
        try:
            return await self._fetch_into(store, ["--filter=tree:0", *every])
        except FilterRefused:
            return await self._fetch_into(store, ["--filter=blob:none", *every])

    async def _refs(self, patterns: Sequence[str]) -> dict[str, str]:
        output = await self.program.network(None, ["ls-remote", "dsfs", *patterns])
        refs = {}
        for line in output.stdout.decode("utf-8", "surrogateescape").splitlines():
            oid, tab, name = line.partition("\t")
            if tab and _OID.fullmatch(oid):
                refs[name] = oid
        return refs

    async def _fetch(self, store: Store, oid: str, filtering: str) -> None:
        # The ref is what the next fetch says it has: of a later commit only trees that changed come.
        refspec = f"{oid}:refs/dsfs/{oid}"
        # Cut off at one commit a history would lack those before it for good: with what is here, it is little anyway.
        depth = [] if store is self._history else ["--depth=1"]
        try:
            words = await self._fetch_into(store, [*depth, filtering, "dsfs", refspec])
        except NoShallow:
            await self._fetch_into(store, ["--no-filter", "dsfs", refspec])
            self.blobs.complete = store
            return
        except RefGone as error:
            if not error.unadvertised:
                raise SourceMissing(f"{self.address.shown}: has no commit {oid}") from error
            # Such a server gives what branches and tags point to, and all behind that; without blobs it is little.
            words = await self._fetch_into(store, [filtering, "dsfs", *_EVERY])
            if (await store.objects.info([oid]))[0] is None:
                raise SourceMissing(f"{self.address.shown}: no branch or tag has commit {oid}") from error
        if _UNFILTERED.search(words):
            self.blobs.complete = store

    async def _fetch_into(self, store: Store, arguments: Sequence[str]) -> str:
        command = ["fetch", "--progress", "--no-tags", "--no-write-fetch-head", "--update-shallow", *arguments]
        return (await self.program.network(store.directory, command)).words

    async def _peeled(self, main: Store, oid: str, revision: str) -> Pin:
        found, commit_oid = oid, oid
        for _ in range(8):  # a tag of a tag of a commit
            (info,) = await main.objects.info([found])
            (raw,) = await main.objects.contents([found]) if info and info.type in ("commit", "tag") else (None,)
            if info is None:
                break
            if info.type == "tree":
                return Pin(commit_oid, found, 0)
            if info.type == "commit" and raw is not None:
                commit: Commit = parse_commit(raw)
                return Pin(found, commit.tree, commit.time_s * 10**9)
            if info.type != "tag" or raw is None:
                raise SourceUnsupported(f"{self.address.shown}: {revision or 'HEAD'} is a file, not a commit")
            found = raw.partition(b"\n")[0].removeprefix(b"object ").decode()
        raise SourceMissing(f"{self.address.shown}: {revision or 'HEAD'} leads to no commit")

    # -- what is in it --------------------------------------------------------------------------------------------

    async def trees(self, oids: Sequence[str]) -> list[dict[str, TreeEntry]]:
        """The names in each of these trees of a commit that was pinned; what must not be shown is left out."""
        main = self._main
        assert main is not None, "pin first"
        found = {oid: self._trees[oid] for oid in oids if oid in self._trees}
        if len(found) < len(set(oids)):
            async with self._reading:  # those who wait here find what the first one has read
                found |= {oid: self._trees[oid] for oid in oids if oid in self._trees}
                absent = [oid for oid in dict.fromkeys(oids) if oid not in found]
                for oid, raw in zip(absent, await main.objects.contents(absent), strict=True):
                    if raw is None:
                        raise SourceUnavailable(f"{self.address.shown}: the server did not send tree {oid}")
                    entries = {entry.name: entry for entry in parse_tree(raw, len(oid)) if entry.name.lower() != ".git"}
                    found[oid] = self._trees[oid] = entries
        return [found[oid] for oid in oids]
