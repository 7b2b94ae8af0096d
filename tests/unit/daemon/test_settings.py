from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon import settings
from daemon.settings import Settings, default_cache_dir
from dsfs.errors import ConfigError
from dsfs.manifest.sizes import parse_size_or_percent


def test_what_a_later_version_wrote_can_be_read(tmp_path: Path) -> None:
    """After a downgrade a server finds settings of the version that was there before."""
    wanted = Settings("/data", str(tmp_path), "/cache", namespaces=("vision",))
    wanted.save()
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_next_year": 1}))
    assert Settings.load(str(tmp_path)) == wanted


@pytest.mark.parametrize("text", [None, "", '{"mountp', "{}", '{"mountpoint": "/data"}'])
def test_settings_that_are_not_whole_are_none_for_who_looks(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "settings.json").write_text(text)
    assert Settings.of(str(tmp_path)) is None


def test_a_user_without_a_home_is_asked_where_the_cache_is_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 54321)
    monkeypatch.delenv("HOME", raising=False)
    with pytest.raises(ConfigError, match="--cache-dir"):
        default_cache_dir({})
    assert default_cache_dir({"XDG_CACHE_HOME": "/x"}) == "/x/dsfs"
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache_dir({}) == "/home/somebody/.cache/dsfs"


def test_pages_are_of_who_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's own cgroup limits them where readers are in it too, as in a training pod that mounts."""
    monkeypatch.setattr(settings, "memory_limit_bytes", lambda: 1)
    own = Settings("/mnt", "/run/x", "/cache")
    assert settings.readers_memory_bytes(own) == 1
    assert settings.readers_memory_bytes(replace(own, keeper="/run/keeper.sock")) > 1 << 20


@pytest.mark.parametrize(("size_gib", "free_mib"), [(10, 512), (40, 2048), (4096, 2048)])
def test_what_stays_free_of_a_large_disk_is_no_share_of_it(
    monkeypatch: pytest.MonkeyPatch, size_gib: int, free_mib: int
) -> None:
    """A large disk that others have filled to 96 % has room for much, and a cache there kept nothing."""
    monkeypatch.setattr("os.statvfs", lambda _path: SimpleNamespace(f_blocks=size_gib << 18, f_frsize=4096))
    mount = Settings("/mnt", "/run/x", "/cache", min_free_most=settings.MIN_FREE_MOST)
    assert mount.least_free() == free_mib << 20
    assert settings.least_free("/cache") == free_mib << 20
    mount = replace(mount, min_free_most=0)
    assert replace(mount, min_free="10%").least_free() == (size_gib << 30) // 10
    assert replace(mount, min_free="0").least_free() == 0


def test_a_version_before_this_one_can_read_what_stays_free(tmp_path: Path) -> None:
    """It knows sizes and percentages only; what it does not know it leaves out."""
    Settings("/mnt", str(tmp_path), "/cache", min_free_most=settings.MIN_FREE_MOST).save()
    parse_size_or_percent(json.loads((tmp_path / "settings.json").read_text())["min_free"])
