"""A claim is filled by people who may read less than the daemon: no link of theirs leads out of it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dsfs.catalog.crawl import crawl
from dsfs.datasets.listing import new_catalog
from dsfs.errors import SourceError, SourceRefused
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import SourceObject
from dsfs.sources.base import Source
from dsfs.sources.directory import DirectorySource
from dsfs.sources.registry import build_source
from tests.sources.sinks import names_in, read_range, tree_of

OURS, THEIRS = b"ours", b"evil"  # of one length, and made to be of one time: only the way to them differs
LINKS = ("corpus/way/train", "corpus/way", "corpus/way/train/f")
ROOTS_AND_LINKS = [
    (root, link) for root in ("corpus/way/train", "corpus/way/train/f") for link in LINKS if link in root
]


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    """A claim of a team, the same names elsewhere, and one name that is only there."""
    for place, data in ("claims/team/corpus/way/train", OURS), ("claims/other/way/train", THEIRS):
        (tmp_path / place / "sub").mkdir(parents=True)
        for name in ("f", "sub/f"):
            (tmp_path / place / name).write_bytes(data)
            os.utime(tmp_path / place / name, (1, 1))
    (tmp_path / "claims/other/way/train/secret").write_bytes(THEIRS)
    return tmp_path / "claims"


def put_link(claims: Path, place: str) -> None:
    """In the place of a file or directory of the claim, to what has its name elsewhere."""
    os.rename(claims / "team" / place, claims / "away")
    (claims / "team" / place).symlink_to(claims / "other" / place.removeprefix("corpus/"))


def put_back(claims: Path, place: str) -> None:
    (claims / "team" / place).unlink()
    os.rename(claims / "away", claims / "team" / place)


def claim(claims: Path, path: str, kind: SourceType = SourceType.PVC) -> DirectorySource:
    spec = SourceSpec(type=kind, uri=f"{kind.lower()}://{path}")
    source = build_source(spec, {}, pvc_root=str(claims), namespace="team")
    assert isinstance(source, DirectorySource)
    return source


def using(source: Source, use: Callable[[Source], Awaitable[None]]) -> None:
    async def run() -> None:
        await use(source)
        await source.close()

    asyncio.run(run())


async def refuses(source: Source, obj: SourceObject | None, where: Path) -> None:
    """Whatever is asked for, in one line that says what and where."""
    asked: list[Awaitable[Any]] = [names_in(source, ""), names_in(source, "sub"), tree_of(source)]
    asked += [source.stat(path) for path in ("", "f", "sub/f", "secret", "none")]
    if obj is not None:
        asked.append(read_range(source, obj, 0, 4))
    for call in asked:
        with pytest.raises(SourceRefused) as caught:
            await call
        assert f"{source.uri}: {where} is a symbolic link" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [SourceType.PVC, SourceType.MANUAL])
@pytest.mark.parametrize("place", LINKS[:2])
def test_a_link_on_the_way_to_the_root_is_refused(claims: Path, place: str, kind: SourceType) -> None:
    put_link(claims, place)

    async def use(source: Source) -> None:
        await refuses(source, SourceObject("f", size=4, version_tag="4-1000000000"), claims / "team" / place)

    using(claim(claims, "corpus/way/train", kind), use)


@pytest.mark.parametrize("place", LINKS)
def test_a_link_in_place_of_a_single_file_is_refused(claims: Path, place: str) -> None:
    put_link(claims, place)

    async def use(source: Source) -> None:
        await refuses(source, SourceObject("f", size=4, version_tag="4-1000000000"), claims / "team" / place)

    using(claim(claims, "corpus/way/train/f"), use)


def test_a_link_to_the_root_of_the_node_is_refused(claims: Path) -> None:
    (claims / "team/corpus/all").symlink_to("/")
    using(claim(claims, "corpus/all"), lambda source: refuses(source, None, claims / "team/corpus/all"))


@pytest.mark.parametrize(("root", "place"), ROOTS_AND_LINKS)
def test_a_link_that_comes_behind_the_listing_is_refused(claims: Path, root: str, place: str) -> None:
    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        assert await read_range(source, obj, 0, 4) == OURS
        put_link(claims, place)
        await refuses(source, obj, claims / "team" / place)
        put_back(claims, place)
        assert await read_range(source, obj, 0, 4) == OURS

    using(claim(claims, root), use)


@pytest.mark.parametrize(("root", "place"), ROOTS_AND_LINKS)
def test_a_link_that_comes_at_any_moment_leads_nowhere(
    claims: Path, monkeypatch: pytest.MonkeyPatch, root: str, place: str
) -> None:
    """Before the n-th system call, for every n, until a run gets through without it."""
    stages: list[Callable[[Source, SourceObject], Awaitable[object]]] = [
        lambda source, obj: read_range(source, obj, 0, 4),
        lambda source, _obj: names_in(source, ""),
        lambda source, _obj: source.stat("f"),
        lambda source, _obj: source.stat("secret"),
        lambda source, _obj: source.stat(""),
    ]
    honest: list[object] = []

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        honest.extend([await stage(source, obj) for stage in stages])
        for stage, answer in zip(stages, honest, strict=True):
            for number in itertools.count():
                with monkeypatch.context() as patch:
                    left = CallsUntil(patch, number, lambda: put_link(claims, place))
                    try:
                        assert await stage(source, obj) == answer, f"behind {number} calls"
                    except SourceError:
                        pass
                if left.number >= 0:
                    break
                put_back(claims, place)
            assert number > 3

    using(claim(claims, root), use)


class CallsUntil:
    """Has something done before one of the calls that a source makes of the system; ``number`` are those left."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, do: Callable[[], None]) -> None:
        self.number = number
        self._do = do
        for name in ("open", "stat", "fstat", "pread", "scandir", "readlink"):
            patch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.number -= 1
            if self.number == -1:
                self._do()
            return call(*args, **kwargs)

        return counted


def test_a_link_that_comes_in_the_middle_of_a_crawl_empties_no_directory(claims: Path, tmp_path: Path) -> None:
    writer = new_catalog(str(tmp_path))
    begun = False

    def answered() -> None:
        nonlocal begun
        if not begun:
            begun = True
            put_link(claims, "corpus/way/train")

    async def use(source: Source) -> None:
        with pytest.raises(SourceRefused, match="is a symbolic link"):
            await crawl(source, writer, answered)
        put_back(claims, "corpus/way/train")
        await crawl(source, writer, answered)

    using(claim(claims, "corpus/way/train"), use)
    writer.close()


def test_a_claim_that_is_a_link_itself_is_what_the_operator_means(claims: Path) -> None:
    os.rename(claims / "team", claims / "elsewhere")
    (claims / "elsewhere/corpus").rename(claims / "volume")
    (claims / "elsewhere/corpus").symlink_to(claims / "volume")
    (claims / "team").symlink_to(claims / "elsewhere")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        (name,) = {"f", "way/train/f"} & set(tree)
        assert await read_range(source, tree[name], 0, 4) == OURS

    for path in ("", "/way/train", "/way/train/f"):
        source = claim(claims, f"corpus{path}")
        assert asyncio.run(source.place()) == f"{claims}/volume{path}"
        using(source, use)


def test_what_is_in_a_claim_is_read(claims: Path) -> None:
    os.symlink("f", claims / "team/corpus/way/train/link")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert set(tree) == {"f", "sub", "sub/f", "link"}
        assert tree["link"].target == "f"
        for name in ("f", "sub/f"):
            assert await source.stat(name) == tree[name]
            assert await read_range(source, tree[name], 0, 4) == OURS
        assert await source.stat("none") is None

    for kind in (SourceType.PVC, SourceType.MANUAL):
        using(claim(claims, "corpus/way/train/", kind), use)


def test_a_directory_that_is_named_as_such_may_be_a_link(claims: Path) -> None:
    put_link(claims, "corpus/way")
    place = str(claims / "team/corpus/way/train")

    async def use(source: Source) -> None:
        assert await read_range(source, (await tree_of(source))["f"], 0, 4) == THEIRS

    ways: list[tuple[str, dict[str, str]]] = [(place, {}), (f"file://{place}", {})]
    for uri, options in (*ways, ("pvc://corpus/way/train", {"directory": place})):
        spec = SourceSpec(type=SourceType.PVC, uri=uri, options=options)
        using(build_source(spec, {}, pvc_root=str(claims), namespace="team"), use)
