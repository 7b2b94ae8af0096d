"""``dsfs export``, and a cache directory that came from elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import flip_byte, one_line_failure
from tests.contract.guarded import FILES, Guarded, guarded, read_all, secret, wait_cached, web_dataset
from tests.manifests import dataset, write_manifests
from tests.mounts import DSFS, Mount, Mounts, clean_environment, dsfs, eventually

TIME_NS = 1_700_000_000_123_456_789


@pytest.fixture
def origin() -> Iterator[Guarded]:
    with guarded() as server:
        yield server


@pytest.fixture
def tree(source: Path) -> Path:
    """A program, a link, an empty file and directory, a name that is no UTF-8, times to the nanosecond."""
    (source / "run").write_bytes(b"#!/bin/sh\n")
    (source / "run").chmod(0o755)
    (source / "link").symlink_to("sub/b.bin")
    (source / "empty").touch()
    (source / "hollow").mkdir()
    Path(os.fsdecode(os.fsencode(source) + b"/sub/\xff\xfe*")).write_bytes(b"odd")
    for path in (source / "a.txt", source / "sub/b.bin", source / "sub"):
        os.utime(path, ns=(TIME_NS, TIME_NS))
    return source


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    """All that a copy must have: kind and mode, owner, time, bytes or link."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            status = path.lstat()
            what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            time_ns = 0 if path.is_symlink() else status.st_mtime_ns
            found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, time_ns, what)
    return found


def test_into_a_directory_and_a_tar(mounts: Mounts, tree: Path, tmp_path: Path) -> None:
    """With a cached block that the disk has changed: the copy is right all the same."""
    manifest = write_manifests(tmp_path / "m.yaml", dataset("one", tree, "team", readPath="passthrough"))
    mount = mounts.mount("-f", manifest, dataset="team/one")
    mount.wait_phase("READY")
    assert (mount.root / "sub/b.bin").stat().st_size == len((mount.root / "sub/b.bin").read_bytes())
    eventually(lambda: mount.dataset()["cached_bytes"] >= 5_000_000, 10, "it is cached")
    where = f"-m{mount.mountpoint}"
    flip_byte(mount.cache_dir, 5_000_000)
    mount.expect_log("corrupt block dropped")
    done = dsfs("export", "team/one", tmp_path / "copy", where)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "5 files" in done.stderr
    wanted = facts(mount.root)
    assert facts(tmp_path / "copy") == wanted
    assert (tmp_path / "copy/sub/b.bin").read_bytes() == (tree / "sub/b.bin").read_bytes()

    assert dsfs("export", "team/one", tmp_path / "copy.tar", where).returncode == 0
    piped = subprocess.run([DSFS, "export", "team/one", "-", where], capture_output=True, env=clean_environment())
    assert piped.returncode == 0, piped.stderr
    for number, text in enumerate(((tmp_path / "copy.tar").read_bytes(), piped.stdout)):
        untarred = tmp_path / f"untarred{number}"
        untarred.mkdir()
        subprocess.run(["tar", "-C", untarred, "-xp"], input=text, check=True)  # not tarfile: it has times as floats
        assert facts(untarred) == wanted

    one_line_failure(dsfs("export", "team/one", tmp_path / "copy", where), "not empty")
    one_line_failure(dsfs("export", "team/one", tmp_path / "copy.tar", where), "already")
    one_line_failure(dsfs("export", "team/one", tmp_path / "copy.tar.gz", where), "copy.tar.gz", "pipe")
    one_line_failure(dsfs("export", "team/none", tmp_path / "x", where), "team/none")
    assert not (tmp_path / "x").exists()


def test_it_goes_on_where_it_was_interrupted(mounts: Mounts, origin: Guarded, tmp_path: Path) -> None:
    origin.allow("")
    mount = mounts.mount(origin.url)
    name = mount.wait_phase("READY")["name"]
    where = f"-m{mount.mountpoint}"
    gate = origin.server.gate("/data/large", 3_000_000)
    argv = [DSFS, "export", name, str(tmp_path / "copy"), where]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=clean_environment()) as process:
        assert gate.reached.wait(20)
        process.kill()
    gate.open()
    work = tmp_path / "copy/.dsfs-export"
    assert work.is_dir()
    assert sorted(path.name for path in (tmp_path / "copy").iterdir() if path != work) == ["a.txt", "b.bin"]
    done = dsfs(*argv[1:])
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == FILES


def copied(mount: Mount, target: Path, how: str) -> Path:
    """The cache directory of an unmounted mount as an image or a backup has it: other owner, other times."""
    if how == "tar":
        target.mkdir()
        archive = subprocess.run(["tar", "-C", mount.cache_dir, "-c", "."], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-C", target, "-x", "--no-same-owner", "-m"], input=archive, check=True)
    else:
        subprocess.run(["cp", "-r", "--sparse=always", mount.cache_dir, target], check=True)
    for path in target.rglob("*"):
        os.chown(path, 1234, 1234)
    return target


@pytest.mark.parametrize("how", ["tar", "cp"])
def test_a_cache_that_came_from_elsewhere_is_used_once_it_is_checked(
    mounts: Mounts, origin: Guarded, tmp_path: Path, how: str
) -> None:
    origin.allow("fake-token-a")
    manifest = write_manifests(
        tmp_path / "m.yaml",
        web_dataset(origin, "one", "team"),
        secret("team", token="fake-token-a"),
    )
    mount = mounts.mount("-f", manifest, dataset="team/one")
    mount.wait_phase("READY", "one")
    read_all(mount.root)
    wait_cached(mount, "one")
    eventually(lambda: list(mount.cache_dir.rglob("proofs")), 10, "the proof is written down")
    assert mount.unmount().returncode == 0

    image = copied(mount, tmp_path / "image", how)
    before = len(origin.reads())
    (tmp_path / "mnt").mkdir()
    refused = dsfs("mount", "-f", manifest, tmp_path / "mnt", f"--cache-dir={image}")
    one_line_failure(refused, "belongs to user 1234", f"chown -R 0 {image}")
    subprocess.run(["chown", "-R", "0", image], check=True)
    again = mounts.mount("-f", manifest, cache_dir=image, dataset="team/one")
    read_all(again.root)
    assert len(origin.reads()) == before
    assert again.unmount().returncode == 0

    only_objects = tmp_path / "objects-only"
    only_objects.mkdir()
    shutil.copy(image / "version", only_objects)
    shutil.copytree(image / "objects", only_objects / "objects")
    flip_byte(only_objects, 5_000_000)
    bare = mounts.mount("-f", manifest, cache_dir=only_objects, dataset="team/one")
    bare.expect_log("corrupt block dropped")
    read_all(bare.root)
    asked = [count for _token, count in origin.reads()[before:]]
    assert sorted(asked)[0] == 1, "a byte, as nothing says that these credentials have read before"
    assert sum(asked) <= 1 + (1 << 20), "and the block that was wrong"
