"""What ``dsfs doctor`` says of a user like those that containers run as."""

from __future__ import annotations

import errno

import pytest

from daemon import doctor
from dsfs.errors import ConfigError
from dsfs.fuse import capabilities
from dsfs.fuse.capabilities import Capabilities


def test_a_user_without_a_home_can_name_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> str:
        raise ConfigError("this user has no home directory for a cache")

    monkeypatch.setattr(doctor, "default_cache_dir", no_home)
    (cache,) = [check for check in doctor.examine() if check.name == "cache directory"]
    assert not cache.ok
    assert not cache.fatal
    assert "--cache-dir" in cache.remedy


def test_the_doctor_says_what_is_missing_and_not_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "look", lambda: Capabilities((6, 12), errno.EACCES, False, True, True))
    checks = {check.name: check for check in doctor.examine()}
    assert checks["/dev/fuse"].result == "Permission denied"
    assert checks["/dev/fuse"].fatal
    assert checks["direct session"].result == "no: needs /dev/fuse"
    assert checks["pyfuse3 session"].result == "no: /dev/fuse: Permission denied"
    assert checks["pyfuse3 session"].remedy == "chmod 666 /dev/fuse, as udev does, or run as root"
