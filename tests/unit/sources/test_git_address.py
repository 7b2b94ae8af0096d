"""Every form of address, its name without credentials, and what lies beside it."""

from __future__ import annotations

import pytest

from dsfs.errors import ConfigError
from dsfs.sources.git_access import Access
from dsfs.sources.git_address import parse_address
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS


@pytest.mark.parametrize(
    ("uri", "shown", "origin", "lfs"),
    [
        ("https://h/a/b.git", "https://h/a/b.git", "https://h", "https://h/a/b.git/info/lfs"),
        ("https://user@h:443/a/", "https://h:443/a", "https://h", "https://h:443/a.git/info/lfs"),
        ("git+http://h:8080/a", "http://h:8080/a", "http://h:8080", "http://h:8080/a.git/info/lfs"),
        ("ssh://git@h:2222/a.git", "ssh://h:2222/a.git", "ssh://h", "https://h/a.git/info/lfs"),
        ("git@H.org:a/b.git", "ssh://h.org/a/b.git", "ssh://h.org", "https://h.org/a/b.git/info/lfs"),
        ("git://[::1]:9418/a", "git://[::1]:9418/a", "git://[::1]:9418", "https://::1/a.git/info/lfs"),
        ("file:///a/b%20c.git", "file:///a/b%20c.git", "file://", "https:///a/b%20c.git/info/lfs"),
        ("/a/b/", "file:///a/b", "file://", "https:///a/b.git/info/lfs"),
    ],
)
def test_forms(uri: str, shown: str, origin: str, lfs: str) -> None:
    address = parse_address(uri)
    assert (address.shown, address.origin, address.lfs_url) == (shown, origin, lfs)


@pytest.mark.parametrize(
    ("base", "relative", "found"),
    [  # as git-submodule(1): "./" and "../" are relative to the repository's own URL
        ("https://h/a/b.git", "../c.git", "https://h/a/c.git"),
        ("https://h/a/b.git/", "../../c.git", "https://h/c.git"),
        ("https://h/a/b.git", "./sub", "https://h/a/b.git/sub"),
        ("git@h:a/b.git", "../c.git", "git@h:a/c.git"),
        ("git@h:b.git", "../c.git", "git@h:c.git"),
        ("ssh://h:22/a/b", "../../x/c", "ssh://h:22/x/c"),
        ("/a/b.git", "../c.git", "file:///a/c.git"),
        ("https://h/a.git", "https://other/c", "https://other/c"),
    ],
)
def test_relative(base: str, relative: str, found: str) -> None:
    assert parse_address(base).relative(relative).url == found


@pytest.mark.parametrize("relative", ["../../../c", "file:///etc", "/etc", "ext::sh -c x", "../ c"])
def test_what_a_submodule_must_not_name(relative: str) -> None:
    with pytest.raises(ConfigError):
        parse_address("https://h/a.git").relative(relative)


def test_credentials_are_for_one_origin() -> None:
    access = Access(parse_address("https://h/a.git"), {"token": "t0ken"})
    assert access.for_other(parse_address("https://h/b.git")).password == "t0ken"
    assert access.for_other(parse_address("https://h:443/b.git")).password == "t0ken"
    for elsewhere in ("http://h/b.git", "https://h:444/b.git", "https://i/b.git", "ssh://h/b.git", "git://h/b"):
        assert not access.for_other(parse_address(elsewhere)).has_secret


def test_the_environment_of_a_local_process_has_no_secret_and_no_surprise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    monkeypatch.setenv("GIT_TRACE_CURL", "1")
    access = Access(parse_address("https://h/a.git"), {"username": "u", "password": "p4ssw0rd"})
    local = access.environment("/work", DEFAULT_TIMEOUTS, network=False)
    assert "p4ssw0rd" not in str(local)
    assert local["GIT_ALLOW_PROTOCOL"] == "none"
    network = access.environment("/work", DEFAULT_TIMEOUTS, network=True)
    assert network["GIT_ALLOW_PROTOCOL"] == "http:https"
    assert network["GIT_CONFIG_GLOBAL"] == "/dev/null"
    settings = {value for name, value in network.items() if name.startswith("GIT_CONFIG_")}
    assert not any("p4ssw0rd" in value for value in settings), "in its own variable, which only the helper prints"
    assert not {"GIT_DIR", "GIT_TRACE_CURL"} & network.keys()
