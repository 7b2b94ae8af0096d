"""Catalogs that are gone or damaged when a server takes over: no number means another file, and no dataset takes
others along."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.manifests import dataset, write_manifests
from tests.mounts import Mount, Mounts, dsfs, eventually

SOURCES = ("one", "other")
NAMES = ("b", "c", "d")


def catalogs_of(mount: Mount, name: str) -> list[Path]:
    return sorted(mount.cache_dir.glob(f"catalogs/default.{name}.*/*.sqlite"))


def make_sources(tmp_path: Path) -> Path:
    for name in SOURCES:
        (tmp_path / name).mkdir()
        for each in NAMES:
            (tmp_path / name / each).write_bytes(f"{name} {each} ".encode() * 50_000)
    return tmp_path


def mount_both(mounts: Mounts, sources: Path, **spec: str) -> Mount:
    manifests = [dataset(name, f"file://{sources}/{name}", "default") for name in SOURCES]
    for manifest in manifests:
        manifest["spec"].update(spec)
    mount = mounts.mount("-f", write_manifests(mounts.directory / "m.yaml", *manifests), dataset="default/one")
    for name in SOURCES:
        mount.wait_phase("READY", name)
    return mount


def remove_all(mount: Mount) -> None:
    for path in (mount.cache_dir / "catalogs").rglob("*"):
        if path.is_file():
            path.unlink()


def remove_those_of_one(mount: Mount) -> None:
    for catalog in catalogs_of(mount, "one"):
        catalog.unlink()


def remove_the_newest_of_one(mount: Mount) -> None:
    catalogs_of(mount, "one")[-1].unlink()


def damage_those_of_one(mount: Mount) -> None:
    for catalog in catalogs_of(mount, "one"):
        catalog.write_bytes(os.urandom(20_000))


def cut_those_of_one(mount: Mount) -> None:
    for catalog in catalogs_of(mount, "one"):
        os.truncate(catalog, 100)


@pytest.mark.parametrize("read_path", ["passthrough", "openless"])
@pytest.mark.parametrize(
    "lose", [remove_all, remove_those_of_one, remove_the_newest_of_one, damage_those_of_one, cut_those_of_one]
)
def test_no_number_means_another_file(
    mounts: Mounts, tmp_path: Path, read_path: str, lose: Callable[[Mount], None]
) -> None:
    sources = make_sources(tmp_path)
    mount = mount_both(mounts, sources, readPath=read_path)
    mount.expect_log("lost|cannot be read|resync failed|no such inode")
    root = mount.mountpoint / "default"
    (sources / "one/c").unlink()
    assert dsfs("dataset", "resync", "default/one", "-m", mount.mountpoint).returncode == 0
    for name in ("one/b", "one/d", "other/b"):
        (root / name).read_bytes()
        os.stat(root / name)
    os.listdir(root / "one")
    (sources / "one/a").write_bytes(b"one a " * 50_000)  # every number behind it would be another's
    (sources / "one/c").write_bytes(b"one c " * 50_000)
    lose(mount)
    mount.kill_server()
    for _ in range(2):
        for name in ("other/b", "one/a", "one/b", "one/c", "one/d"):
            assert (root / name).read_bytes() == f"{name.replace('/', ' ')} ".encode() * 50_000
            assert os.stat(root / name).st_size == 6 * 50_000 + (2 if name.startswith("other") else 0) * 50_000
        eventually(lambda: sorted(os.listdir(root / "one")) == ["a", "b", "c", "d"], 10, "all names")
        mount.wait_phase("READY", "one")
        (sources / "one/e").write_bytes(b"new")
        assert dsfs("dataset", "resync", "default/one", "-m", mount.mountpoint).returncode == 0
        assert (root / "one/e").read_bytes() == b"new"
        (sources / "one/e").unlink()
        assert dsfs("dataset", "resync", "default/one", "-m", mount.mountpoint).returncode == 0
        mount.kill_server()
