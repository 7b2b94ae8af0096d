"""What ``dsfs doctor`` says of a user like those that containers run as."""

from __future__ import annotations

import pytest

from daemon import doctor
from dsfs.errors import ConfigError


def test_a_user_without_a_home_can_name_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> str:
        raise ConfigError("this user has no home directory for a cache")

    monkeypatch.setattr(doctor, "default_cache_dir", no_home)
    (cache,) = [check for check in doctor.examine() if check.name == "cache directory"]
    assert not cache.ok
    assert not cache.fatal
    assert "--cache-dir" in cache.remedy
