from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from daemon import settings
from daemon.settings import Settings, default_cache_dir
from dsfs.errors import ConfigError


def test_what_a_later_version_wrote_can_be_read(tmp_path: Path) -> None:
    """After a downgrade a server finds settings of the version that was there before."""
    wanted = Settings("/data", str(tmp_path), "/cache", namespaces=("vision",))
    wanted.save()
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_next_year": 1}))
    assert Settings.load(str(tmp_path)) == wanted


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
