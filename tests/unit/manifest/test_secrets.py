"""Directories of secrets: who may read which, rotation, and what is never a key."""

from __future__ import annotations

import errno
import os

import pytest

from dsfs.errors import ConfigError
from dsfs.manifest.secrets import VALUE_MAX_BYTES, Secrets


def put(root, path, value="v"):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "secrets").mkdir()
    return tmp_path / "secrets"


@pytest.fixture
def secrets(root):
    return Secrets(directories=[str(root)])


def test_a_file_per_key_is_stripped(root, secrets):
    put(root, "creds/access-key", "  AKID\n")
    (root / "creds" / "bytes").write_bytes(b"\xff")
    assert secrets.get("any", "creds") == {"access-key": "AKID", "bytes": "\udcff"}


def test_a_namespace_has_its_own_and_no_others(root, secrets):
    put(root, "shared/token")
    put(root, "vision/creds/token", "vision's")
    put(root, "nlp/creds/token", "nlp's")
    (root / "empty").mkdir()
    assert secrets.get("vision", "creds") == {"token": "vision's"}
    assert secrets.get("nlp", "creds") == {"token": "nlp's"}
    assert secrets.get("other", "creds") is None
    assert secrets.get("other", "shared") == {"token": "v"}
    assert secrets.get("vision", "shared") is None  # it has a directory: that is all it has
    assert secrets.get("empty", "shared") is None
    assert secrets.get("other", "vision") is None  # a namespace is not a secret
    assert secrets.get("other", "empty") is None


def test_files_beside_the_secrets_of_a_namespace_are_not_a_secret(root, secrets):
    put(root, "vision/creds/token")
    put(root, "vision/README")
    assert secrets.get("other", "vision") is None
    assert secrets.get("vision", "creds") == {"token": "v"}


def test_a_secret_may_be_called_as_a_namespace_is(root, secrets):
    put(root, "vision/token")
    assert secrets.get("vision", "vision") == {"token": "v"}
    assert secrets.get("vision", "token") is None  # a file


def test_what_cannot_be_read_is_not_replaced(root, secrets, monkeypatch):
    put(root, "creds/token", "everybody's")
    put(root, "vision/creds/token", "vision's")
    really_scan = os.scandir

    def refuse_vision(path):  # not chmod: tests may run as root, who reads everything
        if "vision" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return really_scan(path)

    monkeypatch.setattr("dsfs.manifest.secrets.os.scandir", refuse_vision)
    with pytest.raises(ConfigError, match="vision/creds: cannot be read: Permission denied"):
        secrets.get("vision", "creds")
    assert secrets.get("nlp", "creds") == {"token": "everybody's"}


@pytest.mark.parametrize("name", ["..", ".", "", "../outside", "a/b", "/etc", "creds/", ".creds", "creds\0", "creds\n"])
def test_no_name_leaves_the_directory(root, secrets, name):
    put(root.parent, "outside/token")
    put(root, ".creds/token")
    put(root, "creds/token")
    put(root, "a/b/token")
    assert secrets.get("default", name) is None
    assert secrets.get(name, "creds") is None
    assert secrets.get(name, "outside") is None


def test_a_kubelet_swaps_all_keys_at_once(root, secrets):
    put(root, "creds/..2024/token", "old")
    (root / "creds" / "..data").symlink_to("..2024")
    (root / "creds" / "token").symlink_to("..data/token")
    put(root, "creds/.hidden")
    assert secrets.get("default", "creds") == {"token": "old"}
    put(root, "creds/..2025/token", "new")
    (root / "creds" / "..tmp").symlink_to("..2025")
    (root / "creds" / "..tmp").rename(root / "creds" / "..data")
    assert secrets.get("default", "creds") == {"token": "new"}


def test_a_swap_in_between_is_read_again(root, secrets, monkeypatch):
    for version in ["old", "new"]:
        put(root, f"creds/..{version}/access-key", version)
        put(root, f"creds/..{version}/secret-key", version)
    (root / "creds" / "..data").symlink_to("..old")
    for key in ["access-key", "secret-key"]:
        (root / "creds" / key).symlink_to(f"..data/{key}")
    really_open = os.open

    def swap_then_open(path, *arguments, **more):
        if str(path).endswith("secret-key") and (root / "creds" / "..next").exists():
            (root / "creds" / "..next").rename(root / "creds" / "..data")
        return really_open(path, *arguments, **more)

    (root / "creds" / "..next").symlink_to("..new")
    monkeypatch.setattr("dsfs.manifest.secrets.os.open", swap_then_open)
    assert secrets.get("default", "creds") == {"access-key": "new", "secret-key": "new"}


def test_rotation_is_seen(root, secrets):
    put(root, "creds/token", "old")
    assert secrets.get("default", "creds") == {"token": "old"}
    put(root, "creds/token", "new")
    put(root, "creds/username", "u")
    assert secrets.get("default", "creds") == {"token": "new", "username": "u"}


def test_what_is_no_file_is_no_key(root, secrets):
    put(root, "creds/token")
    os.mkfifo(root / "creds" / "pipe")
    (root / "creds" / "dangling").symlink_to("nowhere")
    assert secrets.get("default", "creds") == {"token": "v"}


def test_a_value_that_is_too_large(root, secrets):
    put(root, "creds/token", "x" * (VALUE_MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        secrets.get("default", "creds")


def test_documents_come_first_and_are_not_merged(root):
    put(root, "creds/token", "file")
    put(root, "other/token", "file")
    secrets = Secrets({("default", "creds"): {"username": "document"}}, [str(root)])
    assert secrets.get("default", "creds") == {"username": "document"}
    assert secrets.get("default", "other") == {"token": "file"}
    assert secrets.get("nlp", "creds") == {"token": "file"}


def test_nothing_is_shown(root):
    put(root, "creds/token", "hunter2")
    secrets = Secrets({("default", "a"): {"password": "hunter2"}}, [str(root)])
    assert "hunter2" not in repr(secrets)
    assert "hunter2" not in str(secrets)


def test_a_directory_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="is not a directory of secrets"):
        Secrets(directories=[str(tmp_path / "none")])
