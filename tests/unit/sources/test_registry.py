"""Every type has a source or a sentence."""

from __future__ import annotations

import pytest

from dsfs.errors import ConfigError
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.sources.registry import SOURCES, build_source, credential_environment

URIS = {
    SourceType.S3: "s3://bucket/prefix",
    SourceType.HTTP: "http://127.0.0.1/dir/",
    SourceType.NFS: "/mnt/nfs",
    SourceType.PVC: "/mnt/pvc",
    SourceType.FSSPEC: "memory://x",
    SourceType.GIT: "https://127.0.0.1/x.git",
    SourceType.HUGGING_FACE: "hf://Org/Name",
    SourceType.MODEL_SCOPE: "modelscope://Ns/Name",
    SourceType.HADOOP: "webhdfs://127.0.0.1:9870/dir",
    SourceType.MANUAL: "manual://claim",
}


def test_no_type_is_forgotten() -> None:
    assert set(SOURCES) == set(SourceType)


@pytest.mark.parametrize("kind", SourceType)
def test_a_source_or_a_sentence(kind: SourceType) -> None:
    spec = SourceSpec(type=kind, uri=URIS.get(kind, "x://y"))
    if kind in URIS:
        source = build_source(spec, {}, pvc_root="/mnt")
        assert source.identity
        assert source.uri
        return
    with pytest.raises(ConfigError, match=r"mount both from manifests|built, not read") as caught:
        build_source(spec, {})
    assert "\n" not in str(caught.value)
    assert ("built" in str(caught.value)) == (kind in (SourceType.CONDA, SourceType.DATABASE))


@pytest.mark.parametrize(
    ("options", "secret", "says"),
    [
        ({"Range": "bytes=0-1"}, {}, "sets itself"),
        ({"bad name": "x"}, {}, "cannot be sent"),
        ({"X-A": "b\r\nHost: c"}, {}, "cannot be sent"),
        ({}, {"token": "a\nb"}, "not plain ASCII"),
    ],
)
def test_http_headers_that_are_refused(options: dict[str, str], secret: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        build_source(SourceSpec(type=SourceType.HTTP, uri="http://127.0.0.1/", options=options), secret)
    assert "\n" not in str(caught.value)


def test_two_datasets_of_one_origin_share_their_cache_and_others_do_not() -> None:
    def identity(uri: str, **options: str) -> str:
        return build_source(SourceSpec(type=SourceType.S3, uri=uri, options=options), {}).identity

    assert identity("s3://b/p") == identity("s3://b/p/")
    assert len({identity("s3://b/p"), identity("s3://b/q"), identity("s3://c/p"), identity("s3://b")}) == 4
    assert identity("s3://b/p") != identity("s3://b/p", endpoint="http://127.0.0.1:1")


def test_another_login_is_no_other_access() -> None:
    """A source reads with the variables of its own convention: others would cost it its right to what is cached."""
    first = {
        "AWS_PROFILE": "a",
        "HF_TOKEN": "b",
        "GIT_SSH_COMMAND": "ssh",
        "SSH_AUTH_SOCK": "/s",
        "SSH_CONNECTION": "1",
    }

    def counted(kind: SourceType, environ: dict[str, str], uri: str = "") -> dict[str, str]:
        return credential_environment(SourceSpec(type=kind, uri=uri or URIS.get(kind, "x://y")), environ)

    assert counted(SourceType.S3, first) == {"AWS_PROFILE": "a"}
    assert counted(SourceType.HUGGING_FACE, first) == {"HF_TOKEN": "b"}
    assert counted(SourceType.PVC, first) == {}
    agent = {"SSH_AUTH_SOCK": "/s"}
    assert counted(SourceType.GIT, first) == {"GIT_SSH_COMMAND": "ssh"}
    assert "AWS_PROFILE" in counted(SourceType.GIT, first, "https://git-codecommit.x.amazonaws.com/v1/repos/x")
    for uri in ("ssh://git@host/x.git", "git+ssh://host/x.git", "git@host:team/x.git", "host:team/x.git", "SSH://h/x"):
        assert counted(SourceType.GIT, first, uri).items() >= agent.items()
    for uri in ("sftp://host/x", "fsspec+sftp://host/x", "simplecache::ssh://host/x"):
        assert counted(SourceType.FSSPEC, first, uri).items() >= agent.items()
    for kind in SourceType:
        second = first | {"SSH_CONNECTION": "2", "SSH_CLIENT": "2", "SSH_TTY": "/dev/pts/2", "SSH_AUTH_SOCK": "/other"}
        assert counted(kind, first) == counted(kind, second)
