"""Whose a cache directory must be before anything in it is believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsfs.cache.layout import open_layout
from dsfs.errors import CacheDirectoryError

STRANGER = 54_321

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """One that was used before."""
    open_layout(f"{tmp_path}/cache").release()
    return tmp_path / "cache"


def refusal(cache: Path) -> str:
    with pytest.raises(CacheDirectoryError) as raised:
        open_layout(str(cache))
    text = str(raised.value)
    assert "\n" not in text
    assert str(cache) in text
    return text


@needs_root
def test_a_directory_of_somebody_else_s_is_not_taken(cache: Path) -> None:
    """Whoever made it before us may have put there what we would serve, or do worse."""
    cache.chmod(0o755)
    os.chown(cache, STRANGER, STRANGER)
    assert f"belongs to user {STRANGER} and not to 0" in refusal(cache)
    assert cache.stat().st_mode & 0o777 == 0o755, "and it is left alone"
    os.chown(cache, 0, STRANGER)
    open_layout(str(cache)).release()


@needs_root
@pytest.mark.parametrize("name", ["objects", "objects/ab", "index", "catalogs", "unproven", "pins.json", "lock"])
def test_nor_is_what_lies_in_it(cache: Path, name: str) -> None:
    """As in a directory that everybody could write to until now."""
    (cache / "unproven").mkdir()
    (cache / "pins.json").touch()
    os.chown(cache / name, STRANGER, STRANGER)
    assert f"{name} belongs to user {STRANGER}" in refusal(cache)
    os.chown(cache / name, 0, 0)
    open_layout(str(cache)).release()


@pytest.mark.parametrize("name", ["objects", "index", "catalogs", "objects/ab"])
def test_no_directory_of_it_is_a_link(cache: Path, tmp_path: Path, name: str) -> None:
    (cache / name).rename(tmp_path / "elsewhere")
    (cache / name).symlink_to(tmp_path / "elsewhere")
    before = sorted(os.listdir(tmp_path / "elsewhere"))
    assert f"{name} is no directory" in refusal(cache)
    assert sorted(os.listdir(tmp_path / "elsewhere")) == before


@pytest.mark.parametrize("name", ["lock", "pins.json.new", "scrub.json"])
def test_no_file_of_it_is_a_link(cache: Path, tmp_path: Path, name: str) -> None:
    """They are written, some of them under another name first."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (cache / name).unlink(missing_ok=True)
    (cache / name).symlink_to(victim)
    refusal(cache)
    assert victim.read_text() == "precious"


def test_the_directory_itself_may_be_reached_through_a_link(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cache)
    open_layout(f"{tmp_path}/link").release()


@needs_root
def test_what_is_root_s_will_do_for_others(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume's own directory often is; and root can do anything anyway."""
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    open_layout(str(cache)).release()


@needs_root
def test_where_the_file_server_makes_another_user_of_us_that_is_who_we_are(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """root_squash of NFS, or a mount that gives all files to one user: here files that are made become a stranger's."""
    for directory, names, files in os.walk(cache):
        for name in (".", *names, *files):
            os.chown(f"{directory}/{name}", STRANGER, STRANGER)
    refusal(cache)
    fstat = os.fstat

    def squashed(fd: int) -> os.stat_result:
        found = fstat(fd)
        return os.stat_result((*found[:4], STRANGER, STRANGER, *found[6:]))

    monkeypatch.setattr(os, "fstat", squashed)
    open_layout(str(cache)).release()
