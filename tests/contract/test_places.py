"""Verbs that are given the place of a dataset, or of files of one, in a mount, as a person finds it there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.contract.conftest import one_line_failure, wrong_usage
from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs

SIZE = 256 * 20_000


def printed(*argv: str | Path, cwd: Path | None = None) -> Any:
    done = dsfs(*argv, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def mount_many(mounts: Mounts, source: Path, *names: str) -> Mount:
    """In the namespace ``team``."""
    documents = [dataset(name, source, "team") for name in names]
    return mounts.mount("-f", write_manifests(mounts.directory / "m.yaml", *documents), dataset=f"team/{names[0]}")


def test_every_verb_of_a_tree_takes_them_and_needs_no_mount_point(mounts: Mounts, source: Path) -> None:
    mount, _other = mount_many(mounts, source, "data", "more"), mounts.mount(source)
    sub = mount.root / "sub"
    warmed = printed("warm", sub)
    assert (warmed["dataset"], warmed["glob"], warmed["files"]) == ("team/data", "sub", 1)
    assert printed("warm", f"{sub}/*")["files"] == 1
    assert printed("pin", sub) == {"pinned_bytes": SIZE, "files": 1}
    one_line_failure(dsfs("evict", sub), str(sub), "pinned")
    assert printed("unpin", f"{mount.root}/")["files"] == 0
    assert printed("evict", sub / "b.bin")["evicted_bytes"] >= SIZE
    assert dsfs("dataset", "resync", mount.root).returncode == 0
    assert printed("dataset", "show", mount.root)["name"] == "data"
    done = dsfs("hint", mount.root, "--order=-", stdin=f"{mount.root}/a.txt\n")
    assert done.stdout == "team/data: 1 files will be fetched ahead in this order\n"
    assert printed("warm", sub, "-m", mount.mountpoint)["files"] == 1
    one_line_failure(dsfs("dataset", "resync", sub), str(sub), "names a path")


def test_of_a_single_dataset(mounts: Mounts, source: Path) -> None:
    mount, _other = mounts.mount(source), mount_many(mounts, source, "data")
    warmed = printed("warm", mount.mountpoint / "sub")
    assert (warmed["dataset"], warmed["glob"], warmed["files"]) == ("default/source", "sub", 1)
    assert printed("dataset", "show", mount.mountpoint)["name"] == "source"
    assert printed("evict", mount.mountpoint)["evicted_bytes"] >= SIZE


def test_from_where_one_is(mounts: Mounts, source: Path) -> None:
    mount, _other = mount_many(mounts, source, "data"), mounts.mount(source)
    for selector, glob in (("./sub", "sub"), ("./sub/*", "sub/*"), (".", "")):
        assert printed("warm", selector, cwd=mount.root)["glob"] == glob
    assert printed("warm", "../sub", "-m", mount.mountpoint, cwd=mount.root / "sub")["glob"] == "sub"


def test_behind_links(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    mount = mount_many(mounts, source, "data")
    (tmp_path / "link").symlink_to(mount.mountpoint)
    (tmp_path / "deep").symlink_to(mount.root / "sub")
    assert printed("warm", tmp_path / "link/team/data/sub")["glob"] == "sub"
    assert printed("warm", tmp_path / "deep/b.*")["glob"] == "sub/b.*"


def test_what_is_no_place_of_a_dataset(mounts: Mounts, source: Path, tmp_path: Path) -> None:
    mount, other = mount_many(mounts, source, "team", "data"), mounts.mount(source)
    where = str(mount.mountpoint)
    one_line_failure(dsfs("warm", tmp_path / "none"), f"{tmp_path}/none", "no mount of dsfs", where)
    one_line_failure(dsfs("evict", "/team/data"), "/team/data", "no mount of dsfs", "no / in front")
    for path in ("team", "data/data", "team/none/a.txt", "."):  # never a dataset of such a name in another namespace
        one_line_failure(dsfs("evict", f"{where}/{path}"), where, "no such dataset here", "team/data")
    one_line_failure(dsfs("unpin", mount.mountpoint / "team/none"), "no such dataset here")
    wrong_usage(dsfs("warm", mount.root, "-m", other.mountpoint), where, str(other.mountpoint))
    one_line_failure(dsfs("warm", "team/data/a.txt"), "several dsfs mounts")
    assert printed("warm", "team/data/a.txt", "-m", mount.mountpoint)["files"] == 1, "not relative to anything"
