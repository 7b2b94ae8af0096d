"""One directory is listed for whoever looks into it, while the crawl goes on behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from dsfs.catalog import crawl
from dsfs.catalog.lookup import ROOT_INO, UNREADABLE
from dsfs.catalog.writer import CatalogWriter
from dsfs.errors import (
    RetryLater,
    SourceDeclined,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
    SourceUnsupported,
)
from dsfs.model import Kind, ListingPage, SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Sink, Source, closing, walk
from dsfs.sources.prefixed import PrefixedSource
from dsfs.sources.reference import ReferenceSource
from tests.unit.catalog.test_listings import everything, new_catalog

PAGES = 50


class Paged:
    """Lists the directory ``d`` in pages of one name. Before the third, somebody else may do something."""

    identity = uri = "paged"
    revision = ""

    def __init__(self) -> None:
        self.pages = 0
        self.closed = False
        self.meanwhile = lambda: None

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        try:
            for number in range(PAGES):
                self.pages += 1
                if number == 2:
                    self.meanwhile()
                yield ListingPage((SourceObject(f"{directory}/{number:02}"),))
            yield ListingPage((), (directory,))
        finally:
            self.closed = True

    def list_tree(self) -> AsyncIterator[ListingPage]:
        return self.list_directory("d")

    async def stat(self, path: str) -> SourceObject | None:
        return None

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        return


def list_one(source: Paged, writer: CatalogWriter) -> None:
    asyncio.run(crawl.list_directory(source, writer, "d", lambda: None))


def whole() -> ListingPage:
    return ListingPage(tuple(SourceObject(f"d/{number:02}") for number in range(PAGES)), ("d",))


@pytest.mark.parametrize("sealed", [False, True])
def test_it_ends_when_the_crawl_was_faster(sealed: bool) -> None:
    with new_catalog() as (writer, catalog):
        source = Paged()

        def meanwhile() -> None:
            writer.add(whole())
            if sealed:
                writer.seal()

        source.meanwhile = meanwhile
        list_one(source, writer)
        assert (source.pages, source.closed) == (3, True)
        catalog.refresh()
        assert len(everything(catalog)) == PAGES + 1


def test_it_goes_on_while_only_another_directory_is_whole() -> None:
    with new_catalog() as (writer, catalog):
        source = Paged()
        source.meanwhile = lambda: writer.add(ListingPage((SourceObject("e/x"),), ("e", "")))
        list_one(source, writer)
        assert source.pages == PAGES
        assert catalog.is_listed(ROOT_INO)
        assert len(everything(catalog)) == PAGES + 3


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda source: source,
        lambda source: PrefixedSource(source, "a/b"),
        lambda source: ReferenceSource(source, "", ""),
    ],
    ids=["itself", "below a directory", "of another dataset"],
)
def test_a_crawl_that_is_given_up_leaves_no_listing_behind(wrapped: Callable[[Source], Source]) -> None:
    """A source may be closed as soon as nothing is under way on it."""
    source = Paged()

    def give_up() -> None:
        raise SourceUnavailable("enough")

    async def work(writer: CatalogWriter) -> None:
        with pytest.raises(SourceUnavailable):
            await crawl.crawl(wrapped(source), writer, give_up)
        assert source.closed

    with new_catalog() as (writer, _catalog):
        asyncio.run(work(writer))


@pytest.mark.parametrize(
    "listing",
    [
        lambda source: PrefixedSource(source, "a/b").list_directory("a/b/d"),
        lambda source: ReferenceSource(source, "", "").list_directory("d"),
        lambda source: walk(source.list_directory, "d"),
    ],
    ids=["below a directory", "of another dataset", "a walk"],
)
def test_so_does_a_directory_of_which_enough_was_seen(listing: Callable[[Source], AsyncIterator[ListingPage]]) -> None:
    source = Paged()

    async def work() -> None:
        async with closing(listing(source)) as pages:
            await anext(pages)
        assert source.closed

    asyncio.run(work())


class Unsized(Paged):
    """Two directories of which it says the names alone. Of some it refuses to say more; one is a dead link."""

    def __init__(self) -> None:
        super().__init__()
        self.names = [f"{directory}/{number:03}" for directory in "ab" for number in range(200)]
        self.refused = {"a/000", "b/199"}
        self.asked: list[str] = []

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        for directory in "ab":
            names = tuple(SourceObject(name, size=None) for name in self.names if name.startswith(directory))
            yield ListingPage(names, (directory,))
            await asyncio.sleep(0)
        yield ListingPage((), ("",))

    async def stat(self, path: str) -> SourceObject | None:
        self.asked.append(path)
        await asyncio.sleep(0.001)
        if path in self.refused:
            raise SourceRefused(f"{path} is not for you")
        return None if path == "a/001" else SourceObject(path, size=7)


def test_sizes_are_asked_for_where_somebody_looks_first() -> None:
    with new_catalog() as (writer, catalog):
        source = Unsized()
        looked: list[int] = []

        def look() -> None:
            directory = catalog.find("b")
            if directory is not None and not looked:
                looked.append(directory.ino)
                writer.want(directory.ino, b"150")

        asyncio.run(crawl.crawl(source, writer, look))
        assert source.asked[:50] == source.names[350:]
        assert sorted(set(source.asked)) == source.names
        catalog.refresh()
        assert set(everything(catalog)) == {"a", "b", *source.names} - {"a/001"}
        unknown = {path for path, row in everything(catalog).items() if row.size is None}
        assert unknown == source.refused, "those that are refused keep no other"
        assert (catalog.sealed, catalog.refused) == (True, 2)
        assert {path for path, row in everything(catalog).items() if catalog.is_refused(row.ino)} == source.refused
        assert catalog.refusal.startswith("2 names are refused by the source, one of them: ")


def test_names_that_nobody_has_looked_at_give_way_and_others_do_not() -> None:
    with new_catalog() as (writer, catalog):
        source = Unsized()

        def look() -> None:
            if (directory := catalog.find("b")) is not None:
                writer.want(directory.ino, b"150")

        async def work() -> None:
            readers, held = asyncio.Event(), asyncio.Event()

            async def give_way() -> None:
                held.set()
                await readers.wait()

            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                group.create_task(crawl.crawl(source, writer, look, give_way))
                await held.wait()
                assert set(source.asked) == set(source.names[350:])
                readers.set()

        asyncio.run(work())
        assert sorted(set(source.asked)) == source.names


def test_a_name_that_is_wrong_in_itself_is_told_and_not_a_refused_one() -> None:
    class Wrong(Unsized):
        async def stat(self, path: str) -> SourceObject | None:
            if path == "b/150":
                raise SourceUnsupported(f"{path} is packed")
            return await super().stat(path)

    with new_catalog() as (writer, catalog):
        source = Wrong()
        asyncio.run(crawl.crawl(source, writer, lambda: None))
        catalog.refresh()
        assert (catalog.sealed, catalog.refused, catalog.unreadable) == (True, 2, 1)
        assert {path for path, row in everything(catalog).items() if row.listed == UNREADABLE} == {"b/150"}
        assert catalog.refusal.startswith("2 names are refused by the source, one of them: ")
        assert catalog.refusal.endswith("; 1 file cannot be read from the source: b/150 is packed")


def test_names_that_are_declined_are_tried_again_and_cost_no_hours_where_they_are_many() -> None:
    class Locked(Unsized):
        async def stat(self, path: str) -> SourceObject | None:
            if path == "a/100":
                self.asked.append(path)
                if self.asked.count(path) < 3:
                    raise SourceDeclined(f"{path} is locked for a moment")
                return SourceObject(path, size=7)
            if path.startswith("b"):
                self.asked.append(path)
                raise SourceDeclined(f"{path} is locked")
            return await super().stat(path)

    with new_catalog() as (writer, catalog):
        source = Locked()
        asyncio.run(asyncio.wait_for(crawl.crawl(source, writer, lambda: None), 60))
        catalog.refresh()
        assert (catalog.sealed, catalog.refused, catalog.unreadable) == (True, 1, 200)
        assert everything(catalog)["a/100"].size == 7
        assert len(source.asked) < 800


class Walled(Unsized):
    """Declines all but the names that are ``let``."""

    def __init__(self, number: int, let: frozenset[str]) -> None:
        super().__init__()
        self.names = [f"{directory}/{each:04}" for directory in "ab" for each in range(number)]
        self.let = let

    async def stat(self, path: str) -> SourceObject | None:
        self.asked.append(path)
        if path not in self.let:
            raise SourceDeclined(f"{path} is declined")
        return SourceObject(path, size=7)


@pytest.mark.parametrize(
    ("let", "most", "asked"),
    [
        (frozenset(), 10_000, 300),
        (frozenset({"a/0000"}), 10_000, 800),
        (frozenset({"b/0299"}), 10_000, 900),
        (frozenset({"a/0000"}), 200, 450),
    ],
    ids=["all", "most, and not very many", "all but the last", "very many"],
)
def test_it_costs_no_hours_to_find_that_names_are_declined(
    monkeypatch: pytest.MonkeyPatch, let: frozenset[str], most: int, asked: int
) -> None:
    monkeypatch.setattr("dsfs.catalog.crawl._DECLINED_AT_FIRST", 100)
    monkeypatch.setattr("dsfs.catalog.refusals._MOST", most)
    with new_catalog() as (writer, catalog):
        source = Walled(300, let)
        fails = pytest.raises(SourceDeclined, match="is declined")
        with contextlib.nullcontext() if asked >= 800 else fails:
            asyncio.run(asyncio.wait_for(crawl.crawl(source, writer, lambda: None), 60))
        catalog.refresh()
        assert catalog.sealed == (asked >= 800)
        assert len(source.asked) < asked
        again = [path for path, times in Counter(source.asked).items() if times > 1]
        assert len(again) < 50, "few are tried again in all, not of each batch"


def test_a_name_that_fails_unexpectedly_does_not_end_the_others() -> None:
    class Broken(Unsized):
        async def stat(self, path: str) -> SourceObject | None:
            if path in {"a/002", "b/150"}:
                raise OverflowError
            return await super().stat(path)

    with new_catalog() as (writer, catalog):
        with pytest.raises(SourceError, match="OverflowError in the daemon"):
            asyncio.run(crawl.crawl(Broken(), writer, lambda: None))
        unknown = {path for path, row in everything(catalog).items() if row.size is None and row.kind == Kind.FILE}
        assert unknown == {"a/000", "a/002", "b/150", "b/199"}
        assert not catalog.sealed


def test_a_failure_of_the_source_is_told_before_a_bug_that_came_first() -> None:
    """It is worth another try."""

    class Silent(Unsized):
        async def stat(self, path: str) -> SourceObject | None:
            if path == "a/000":
                return SourceObject(path, size=7)
            try:
                await asyncio.Event().wait()
            finally:
                raise SourceTimeout(f"{path}: nothing answered in time")

    def broken(_found: object) -> None:
        raise ZeroDivisionError

    with new_catalog() as (writer, _catalog):
        writer.add_found = broken  # type: ignore[method-assign]  # the bug
        with pytest.raises(SourceTimeout):
            asyncio.run(crawl.resolve(Silent(), writer, ["a/000", "a/001"]))


def test_files_that_cannot_be_do_not_keep_the_others() -> None:
    class Odd(Unsized):
        async def stat(self, path: str) -> SourceObject | None:
            found = await super().stat(path)
            return SourceObject(path, size=10**19) if found is not None and path.startswith("b/1") else found

    with new_catalog() as (writer, catalog):
        source = Odd()
        asyncio.run(crawl.crawl(source, writer, lambda: None))
        assert sorted(source.asked) == sorted(set(source.asked)), "what was said is not asked for again"
        catalog.refresh()
        assert (catalog.sealed, catalog.refused, catalog.impossible) == (True, 2, 99)
        assert catalog.refusal.startswith("2 names are refused by the source, one of them: ")
        assert "; 99 files have a size at the source that no file can have, one of them: 'b/1" in catalog.refusal


def test_what_was_refused_and_is_not_any_more_is_asked_for_when_it_is_listed_again() -> None:
    class Failing(Unsized):
        def __init__(self) -> None:
            super().__init__()
            self.listings = 0

        async def list_tree(self) -> AsyncIterator[ListingPage]:
            self.listings += 1
            if self.listings == 2:
                raise SourceRefused("and so is the root: the credentials have ended")
            async for page in super().list_tree():
                yield page

    with new_catalog() as (writer, catalog):
        source = Failing()
        with pytest.raises(SourceRefused, match="root"):
            asyncio.run(crawl.crawl(source, writer, lambda: None))
        assert not catalog.sealed
        source.refused.clear()
        source.asked.clear()
        asyncio.run(crawl.crawl(source, writer, lambda: None))
        catalog.refresh()
        assert (catalog.sealed, catalog.refused) == (True, 0)
        assert sorted(source.asked) == ["a/000", "b/199"]


@pytest.mark.parametrize("found", [False, True], ids=["in a walk", "by a look at its name"])
def test_a_directory_that_is_refused_is_sealed_as_such(found: bool) -> None:
    class Tree(Paged):
        async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
            if directory == "d":
                yield ListingPage((SourceObject("d/seen"),))
                raise SourceRefused("d is not for you")
            kind = Kind.FILE if found else Kind.DIRECTORY
            yield ListingPage((SourceObject("d", kind, None if found else 0), SourceObject("x")), ("",))

        def list_tree(self) -> AsyncIterator[ListingPage]:
            return walk(self.list_directory)

        async def stat(self, path: str) -> SourceObject | None:
            return SourceObject(path, Kind.DIRECTORY)

    for wrapped, below in ((Tree(), ""), (PrefixedSource(Tree(), "p"), "p/"), (ReferenceSource(Tree(), "", ""), "")):
        with new_catalog() as (writer, catalog):
            asyncio.run(crawl.crawl(wrapped, writer, lambda: None))
            catalog.refresh()
            directory = catalog.find(f"{below}d")
            assert directory is not None
            assert (catalog.sealed, catalog.refused, catalog.is_refused(directory.ino)) == (True, 1, True)
            assert not catalog.is_listed(directory.ino)
            assert catalog.is_listed(directory.parent)


def test_a_directory_that_somebody_has_listed_meanwhile_is_not_refused_but_what_is_unknown_below_is() -> None:
    with new_catalog() as (writer, catalog):
        directories = [SourceObject(path, Kind.DIRECTORY) for path in ("d", "e", "f", "d/sub", "d/known")]
        writer.add(ListingPage(tuple(directories[:3]), ("",)))
        writer.add(ListingPage((), (), (("d", "first"), ("e", "no"))))
        writer.add(ListingPage((SourceObject("d/a"), *directories[3:]), ("d",)), of_all=False)
        writer.add(ListingPage((), ("d/known",)), of_all=False)
        writer.add_found({"e/late": SourceObject("e/late", Kind.DIRECTORY)})
        writer.seal()
        catalog.refresh()
        refused = {path for path, row in everything(catalog).items() if catalog.is_refused(row.ino)}
        assert refused == {"d/sub", "e", "e/late"}
        assert catalog.refusal == "3 names are refused by the source, one of them: first"
        assert all(catalog.is_listed(row.ino) for path, row in everything(catalog).items() if path in {"d", "d/known"})


def test_a_name_that_is_found_after_it_was_refused_is_not() -> None:
    with new_catalog() as (writer, _catalog):
        writer.add(ListingPage((SourceObject("d", size=None), SourceObject("x")), ("",)))
        writer.refuse("d", "no")
        writer.add_found({"d": SourceObject("d", Kind.DIRECTORY)})
        assert writer.found_directories() == ["d"]
        assert not writer.refusal()


def test_a_name_that_is_found_to_be_a_directory_is_listed_whatever_a_late_look_at_it_says() -> None:
    """A reader and the crawl ask for it at once, and one of them is declined."""

    class Indexed(Paged):
        listed = 0

        async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
            self.listed += 1
            yield ListingPage((SourceObject(f"{directory}/f", size=1),), (directory,))

        async def list_tree(self) -> AsyncIterator[ListingPage]:
            yield ListingPage((SourceObject("d", size=None), SourceObject("x")), ("",))
            writer.add_found({"d": SourceObject("d", Kind.DIRECTORY)})
            writer.refuse("d", "declined", SourceDeclined)

    with new_catalog() as (writer, catalog):
        source = Indexed()
        asyncio.run(asyncio.wait_for(crawl.crawl(source, writer, lambda: None), 20))
        catalog.refresh()
        assert set(everything(catalog)) == {"d", "d/f", "x"}
        assert (catalog.sealed, catalog.refused, catalog.unreadable, source.listed) == (True, 0, 0, 1)


@pytest.mark.parametrize("of_listing", [False, True])
def test_a_directory_is_refused_and_never_a_file_that_cannot_be_read(of_listing: bool) -> None:
    """Where its names are not known, none of them is certain not to be there."""
    with new_catalog() as (writer, catalog):
        writer.add(ListingPage((SourceObject("d", size=None), SourceObject("x")), ()))
        writer.refuse("d", "declined", SourceDeclined)
        writer.add_found({"d/sub/f": SourceObject("d/sub/f", size=1)})
        if of_listing:
            writer.refuse("d", "refused")
        writer.seal()
        catalog.refresh()
        assert (catalog.refused, catalog.unreadable) == (2, 0)
        assert catalog.refusal.endswith("refused" if of_listing else "declined")
        directories = [row.ino for path, row in everything(catalog).items() if path in {"d", "d/sub"}]
        assert not any(catalog.is_listed(ino) for ino in directories)


def test_very_many_found_directories_that_are_refused_end_the_crawl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsfs.catalog.refusals._MOST", 1)

    class Tree(Paged):
        async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
            if directory:
                raise SourceRefused("not for you")
            yield ListingPage((SourceObject("x"), *(SourceObject(name, size=None) for name in "abcd")), ("",))

        def list_tree(self) -> AsyncIterator[ListingPage]:
            return walk(self.list_directory)

        async def stat(self, path: str) -> SourceObject | None:
            return SourceObject(path, Kind.DIRECTORY)

    with new_catalog() as (writer, _catalog), pytest.raises(SourceRefused):
        asyncio.run(asyncio.wait_for(crawl.crawl(Tree(), writer, lambda: None), 20))


def test_the_root_that_is_asked_again_is_the_source_s_own() -> None:
    class Ended(Paged):
        asked = 0

        async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
            self.asked += 1
            if self.asked > 1:
                raise SourceRefused("the token has ended")
            yield ListingPage((SourceObject("d", Kind.DIRECTORY), SourceObject("x")), ("",))

        def list_tree(self) -> AsyncIterator[ListingPage]:
            return walk(self.list_directory)

    for source in (Ended(), PrefixedSource(Ended(), "a/b"), ReferenceSource(Ended(), "", "")):
        with new_catalog() as (writer, catalog):
            with pytest.raises(SourceRefused, match="ended"):
                asyncio.run(crawl.crawl(source, writer, lambda: None))
            catalog.refresh()
            assert not catalog.sealed


def test_a_source_that_refuses_very_much_refuses_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, sealed in ((2, True), (1, False)):
        monkeypatch.setattr("dsfs.catalog.refusals._MOST", most)
        with new_catalog() as (writer, catalog):
            with contextlib.nullcontext() if sealed else pytest.raises(SourceRefused, match="not for you"):
                asyncio.run(crawl.crawl(Unsized(), writer, lambda: None))
            catalog.refresh()
            assert catalog.sealed == sealed


def test_a_source_that_cannot_be_reached_is_not_asked_for_every_name() -> None:
    class Gone(Unsized):
        async def stat(self, path: str) -> SourceObject | None:
            self.asked.append(path)
            await asyncio.sleep(0.001 if len(self.asked) == 1 else 60)
            raise SourceUnavailable("gone")

    with new_catalog() as (writer, _catalog):
        source = Gone()
        with pytest.raises(SourceUnavailable):
            asyncio.run(asyncio.wait_for(crawl.crawl(source, writer, lambda: None), 20))
        assert len(source.asked) < 60


def test_one_name_of_many_may_fail_for_a_moment() -> None:
    """A server that is asked a hundred thousand times answers 503 to some."""

    class Flaky(Unsized):
        failed = 0

        async def stat(self, path: str) -> SourceObject | None:
            self.asked.append(path)
            if len(self.asked) > 200 and len(self.asked) % 101 == 0 and self.asked.count(path) == 1:
                self.failed += 1
                raise RetryLater("busy", 0.0)
            await asyncio.sleep(0)
            return SourceObject(path, size=1, version_tag="1")

    with new_catalog() as (writer, catalog):
        source = Flaky()
        asyncio.run(asyncio.wait_for(crawl.crawl(source, writer, lambda: None), 60))
        assert source.failed
        catalog.refresh()
        assert catalog.sealed


def test_a_directory_may_fail_for_a_moment_and_the_root_is_asked_once() -> None:
    asked: Counter[str] = Counter()

    async def list_directory(directory: str) -> AsyncIterator[ListingPage]:
        asked[directory] += 1
        if asked[directory] == 1 and directory != "dead":
            raise SourceUnavailable("busy")
        names = ["d", "e"] if not directory else ["f"] if directory == "d" else []
        below = f"{directory}/" if directory else ""
        kind = Kind.FILE if directory else Kind.DIRECTORY
        yield ListingPage(tuple(SourceObject(below + name, kind) for name in names), (directory,))

    async def everything() -> list[str]:
        return [obj.path async for page in walk(list_directory) for obj in page.objects]

    with pytest.raises(SourceUnavailable):
        asyncio.run(everything())
    assert asyncio.run(everything()) == ["d", "e", "d/f"]
    assert asked == {"": 2, "d": 2, "e": 2}


def test_what_is_skipped_is_counted_once() -> None:
    """Though somebody lists a directory beside the crawl, and the crawl begins again."""

    class Odd(Paged):
        async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
            yield ListingPage((SourceObject("d/.."), SourceObject("d/right")))
            if self.pages:
                self.pages -= 1
                raise SourceUnavailable("broke off")
            yield ListingPage((), ("d", ""))

    with new_catalog() as (writer, catalog):
        source = Odd()
        list_one(source, writer)
        source.pages = 2
        for _ in range(2):
            with pytest.raises(SourceUnavailable):
                asyncio.run(crawl.crawl(source, writer, lambda: None))
        asyncio.run(crawl.crawl(source, writer, lambda: None))
        assert catalog.totals() == (1, 0, 1)


@pytest.mark.parametrize("again", [False, True])
def test_a_name_that_turns_out_to_be_a_directory_is_listed(again: bool) -> None:
    """An index links it without a "/", or somebody has looked it up before its parent was listed."""
    tree = {"": ["a", "late"], "a": ["b", "f"], "a/b": ["g"], "late": ["h"]}

    class Linked(Unsized):
        broken = again

        async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
            if directory == "gone":
                raise SourceMissing("gone")
            if directory == "a/b" and self.broken:
                self.broken = False
                raise SourceUnsupported("not now")
            below = f"{directory}/" if directory else ""
            yield ListingPage(tuple(SourceObject(below + name, size=None) for name in tree[directory]), (directory,))

        def list_tree(self) -> AsyncIterator[ListingPage]:
            return walk(self.list_directory)

        async def stat(self, path: str) -> SourceObject | None:
            return SourceObject(path, Kind.DIRECTORY) if path in {*tree, "gone"} else SourceObject(path, size=1)

    with new_catalog() as (writer, catalog):
        source = Linked()
        for path in ("late", "gone"):
            asyncio.run(crawl.find(source, writer, path))
        if again:
            with pytest.raises(SourceUnsupported):
                asyncio.run(crawl.crawl(source, writer, lambda: None))
        asyncio.run(crawl.crawl(source, writer, lambda: None))
        catalog.refresh()
        found = {path: row.kind for path, row in everything(catalog).items()}
        assert found == {
            **dict.fromkeys(["a", "a/b", "late", "gone"], Kind.DIRECTORY),
            **dict.fromkeys(["a/f", "a/b/g", "late/h"], Kind.FILE),
        }
        assert catalog.totals()[0] == 3
