"""Git credentials: refused, right, rotated; for their own host only; in no argument list, error or file that stays."""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsfs.errors import ConfigError, SourceError, SourceRefused
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.sources.git import GitSource, git_source
from dsfs.sources.git_access import Access
from dsfs.sources.git_address import parse_address
from tests.servers.git_server import GitServer, Module, basic, http_git, shell_script
from tests.sources.sinks import read_range, tree_of
from tests.sources.test_git import build, content_of, using

TOKEN = "s3cr3t-t0ken-%41 value"
FILES = {"a": b"1", "b/c": b"2"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with http_git(tmp_path_factory.mktemp("locked"), auth=True) as server:
        server.repository("r.git").commit(FILES)
        yield server


@pytest.fixture(autouse=True)
def _no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the git configuration nor the netrc of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))


def test_refused_right_and_rotated(locked: GitServer) -> None:
    uri = f"{locked.url}r.git"
    locked.set_password("alice", TOKEN)
    assert using(build(uri, {"username": "alice", "password": TOKEN}), content_of) == FILES
    assert using(build(uri, {"username": "alice", "token": TOKEN}), content_of) == FILES
    with_user = uri.replace("http://", "http://alice@")
    assert using(build(with_user, {"password": TOKEN}), content_of) == FILES
    for secret in ({}, {"username": "alice", "password": "wrong"}, {"token": TOKEN}):
        with pytest.raises(SourceRefused, match=r"r\.git.*Secret"):
            using(build(uri, secret), tree_of)
    locked.set_password("oauth2", TOKEN)  # as BaizeAI/dataset sends a token
    assert using(build(uri, {"token": TOKEN}), content_of) == FILES

    async def rotated(source: GitSource) -> None:
        tree = await tree_of(source)
        locked.set_password("oauth2", "another")
        after = build(uri, {"token": "another"})
        try:
            assert await read_range(after, tree["b/c"], 0, 1) == b"2"
            with pytest.raises(SourceRefused):
                await tree_of(build_again)
        finally:
            await after.close()
            await build_again.close()

    build_again = build(uri, {"token": TOKEN})
    using(build(uri, {"token": TOKEN}), rotated)


def test_the_users_own_helpers_are_asked_without_a_secret_and_never_told_one(
    locked: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked.set_password("bob", "from-helper")
    told = tmp_path / "told"
    answer = "test $1 = get && echo username=bob && echo password=from-helper; exit 0"
    shell_script(tmp_path / "helper", f"echo $1 >> {told}; cat >> {told}; {answer}")
    (tmp_path / ".gitconfig").write_text(
        f'[credential]\n\thelper = "{tmp_path}/helper"\n[core]\n\thooksPath = /nonesuch\n'
    )
    assert using(build(f"{locked.url}r.git"), content_of) == FILES
    assert "get" in told.read_text()
    told.unlink()
    locked.set_password("alice", TOKEN)
    assert using(build(f"{locked.url}r.git", {"username": "alice", "password": TOKEN}), content_of) == FILES
    assert not told.exists(), "with a Secret no helper is asked, so none is told to store it"


def test_no_credentials_for_another_host(locked: GitServer, tmp_path: Path) -> None:
    """Neither after a redirect nor for a submodule that lies elsewhere."""
    locked.set_password("alice", TOKEN)
    secret = {"username": "alice", "password": TOKEN}
    with http_git(tmp_path, auth=True, elsewhere=locked.url.rstrip("/")) as other:
        other.set_password("alice", TOKEN)
        with pytest.raises(SourceRefused):
            using(build(f"{other.url}moved/r.git", secret), tree_of)
        inner = locked.repository("inner-of-other.git").commit({"i": b"i"})
        modules = f'[submodule "i"]\n\tpath = i\n\turl = {locked.url}inner-of-other.git\n'.encode()
        other.repository("outer.git").commit({".gitmodules": modules, "i": Module(inner)})
        with pytest.raises(SourceRefused, match="inner-of-other"):
            using(build(f"{other.url}outer.git", secret, submodules="true"), tree_of)
        own = other.repository("own.git").commit({"i": b"i"})
        modules = b'[submodule "i"]\n\tpath = i\n\turl = ../own.git\n'
        other.repository("outer2.git").commit({".gitmodules": modules, "i": Module(own)})
        content = using(build(f"{other.url}outer2.git", secret, submodules="true"), content_of)
        assert content["i/i"] == b"i"


@contextmanager
def _watching_command_lines() -> Iterator[set[str]]:
    """Every command line and process title of this machine that is seen inside the block."""
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for pid in filter(str.isdigit, os.listdir("/proc")):
                for name in ("cmdline", "comm"):
                    try:
                        seen.add(Path(f"/proc/{pid}/{name}").read_text(errors="replace").replace("\0", " "))
                    except OSError:
                        continue  # it ended

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_secrets_are_seen_nowhere(locked: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        locked.repository(f"seen-{number}.git").commit({f"{number}-{i}": b"%d %d" % (number, i) for i in range(200)})
    hidden = (TOKEN, basic("alice", TOKEN).removeprefix("Basic "), "wr0ng-s3cr3t")

    async def look(source: GitSource) -> None:
        await tree_of(source)
        (opened,) = source.repositories()
        for path in _files_below(opened.program.directory):
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in hidden), path
        assert not any(secret in repr(value) for value in (source.uri, source.identity) for secret in hidden)

    with _watching_command_lines() as seen:
        for number in range(8):
            locked.set_password("alice", TOKEN)
            uri = f"{locked.url}seen-{number}.git"
            using(build(uri, {"username": "alice", "password": TOKEN}), look)
            with pytest.raises(SourceRefused) as caught:
                using(build(uri, {"username": "alice", "password": hidden[2]}), tree_of)
            text = "".join(traceback.format_exception(caught.value))
            assert not any(secret in text for secret in hidden)
    assert any("git" in line and "fetch" in line for line in seen), "the watch saw git at work"
    assert not [line for line in seen for secret in hidden if secret in line]


def _files_below(directory: str) -> list[Path]:
    return [path for path in Path(directory).rglob("*") if path.is_file()]


def test_key_files_are_private_and_go_with_the_source(tmp_path: Path) -> None:
    access = Access(
        parse_address("ssh://git@127.0.0.1:1/r.git"), {"ssh-privatekey": "KEY", "ssh-privatekey-passphrase": "P"}
    )

    async def run() -> None:
        source = GitSource(access, work_directory=str(tmp_path / "work"))
        with pytest.raises(SourceError, match=r"r\.git"):
            await tree_of(source)
        (opened,) = source.repositories()
        directory = Path(opened.program.directory)
        key, askpass = directory / "key", directory / "askpass"
        assert [path.stat().st_mode & 0o777 for path in (directory, key, askpass)] == [0o700, 0o600, 0o700]
        assert key.read_text() == "KEY\n", "Secrets come stripped, and ssh wants the line to end"
        assert "P\n" not in askpass.read_text()
        await source.close()
        assert os.listdir(tmp_path / "work") == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("uri", "secret", "options", "says"),
    [
        ("ext::sh -c 'touch /tmp/x'", {}, {}, "space"),
        ("ext::sh", {}, {}, "names no repository"),
        ("fd::3", {}, {}, "names no repository"),
        ("ext://x/y", {}, {}, "not read"),
        ("https://u:p4ssw0rd@h/r.git", {}, {}, "carries a password"),
        ("ssh://-oProxyCommand=x/r", {}, {}, "begins with -"),
        ("-oProxyCommand=x:r", {}, {}, "begins with -|names no"),
        ("git@h:-r", {}, {}, "begins with -"),
        ("https://h/r.git", {"token": "a\nb"}, {}, "line break"),
        ("https://h/r.git", {"ssh-privatekey": "k"}, {}, "is for ssh"),
        ("https://h/r.git", {}, {"revision": "--upload-pack=x"}, "no name"),
        ("https://h/r.git", {}, {"revision": "a..b"}, "no name"),
        ("https://h/r.git", {}, {"branch": "a b"}, "no name"),
        ("https://h/r.git", {}, {"submodules": "perhaps"}, "true or false"),
        ("https://h/r.git", {}, {"depth": "deep"}, "number"),
        ("https://h/r.git", {}, {"unknown": "x"}, "not known"),
    ],
)
def test_what_is_refused_before_anything_runs(
    uri: str, secret: dict[str, str], options: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        git_source(SourceSpec.model_construct(type=SourceType.GIT, uri=uri, options=options), secret)
    assert "\n" not in str(caught.value)
    assert "p4ssw0rd" not in str(caught.value)
