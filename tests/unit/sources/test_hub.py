"""Hub addresses, filters, signed URLs: what needs no hub."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsfs.errors import ConfigError
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.manifest.uri import manifest_from_uri
from dsfs.sources.base import Source
from dsfs.sources.hub import Filters, TokenFile
from dsfs.sources.hub_address import HubAddress, hugging_face_address, model_scope_address
from dsfs.sources.hub_read import expiry_s, patience_s
from dsfs.sources.registry import build_source

HF, MS = SourceType.HUGGING_FACE, SourceType.MODEL_SCOPE
COMMIT = "a" * 40


def address(uri: str, **options: str) -> HubAddress:
    kind = MS if uri.startswith("modelscope") else HF
    taken = model_scope_address if kind is MS else hugging_face_address
    return taken(SourceSpec(type=kind, uri=uri, options=options))


@pytest.mark.parametrize(
    ("uri", "kind", "repo", "revision", "path"),
    [
        ("hf://Org/Name", "models", "Org/Name", "", ""),
        ("hf://gpt2", "models", "gpt2", "", ""),
        ("hf://gpt2@v1", "models", "gpt2", "v1", ""),
        ("hf://datasets/squad", "datasets", "squad", "", ""),
        ("hf://datasets/Org/Name@v1.0/sub/dir/", "datasets", "Org/Name", "v1.0", "sub/dir"),
        ("hf://datasets/Org/Name/a@b/c", "datasets", "Org/Name", "", "a@b/c"),
        ("hf://spaces/Org/Name@refs/pr/10/sub", "spaces", "Org/Name", "refs/pr/10", "sub"),
        ("hf://Org/Name@refs/convert/parquet", "models", "Org/Name", "refs/convert/parquet", ""),
        ("hf://models/Org/Name@feature%2Fx/y", "models", "Org/Name", "feature/x", "y"),
        ("huggingface://BaizeAI/Qwen3.5-9B", "models", "BaizeAI/Qwen3.5-9B", "", ""),
        ("huggingface://Org/Name?repoType=DATASET&revision=v2", "datasets", "Org/Name", "v2", ""),
        (f"hf://Org/Name@{COMMIT}", "models", "Org/Name", COMMIT, ""),
        ("modelscope://Qwen/Qwen2.5-0.5B", "models", "Qwen/Qwen2.5-0.5B", "", ""),
        ("modelscope://datasets/Ns/Name/sub", "datasets", "Ns/Name", "", "sub"),
        ("modelscope://datasets/Name", "models", "datasets/Name", "", ""),
        ("modelscope://Ns/Name@v1/sub?repoType=dataset", "datasets", "Ns/Name", "v1", "sub"),
    ],
)
def test_addresses(uri: str, kind: str, repo: str, revision: str, path: str) -> None:
    found = address(uri)
    assert (found.kind, found.repo, found.revision, found.path) == (kind, repo, revision, path)


@pytest.mark.parametrize(
    ("uri", "options", "says"),
    [
        ("hf://Org/Name", {"repotype": "MODEL"}, "known are repoType, revision, endpoint, include, exclude"),
        ("hf://Org/Name", {"offline": "true"}, "'offline' is not known"),
        ("hf://Org/Name", {"repoType": "kernel"}, "must be one of model, dataset, space"),
        ("modelscope://Ns/Name", {"repoType": "space"}, "must be one of model, dataset"),
        ("hf://datasets/Org/Name", {"repoType": "MODEL"}, "say it once"),
        ("hf://Org/Name@v1", {"revision": "v2"}, "say it once"),
        ("hf://Org/Name?revision=v1", {"revision": "v2"}, "say it once"),
        ("hf://Org/Name?branch=v1", {}, "parameter 'branch'"),
        ("hf://Org/Name@", {}, "no revision behind the @"),
        ("hf://Org/Name", {"revision": "../../x"}, "no name of a branch"),
        ("hf://Org/Name", {"revision": "a b"}, "no name of a branch"),
        ("hf://Org/Name/a/../b", {}, "cannot be one"),
        ("hf://-x/Name", {}, "names no repository"),
        ("hf://Org/Na..me", {}, "names no repository"),
        ("modelscope://Name", {}, "names no repository"),
        ("s3://Org/Name", {}, "must begin with"),
    ],
)
def test_addresses_that_are_refused(uri: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        address(uri, **options)
    assert "\n" not in str(caught.value)


def test_a_uri_of_the_command_line_keeps_its_case() -> None:
    manifest = manifest_from_uri("hf://datasets/Org/Name@v1.0", {}, base_dir="/")
    assert manifest.source.type is HF
    assert hugging_face_address(manifest.source).repo == "Org/Name"


def build(kind: SourceType, uri: str, token: str = "", **options: str) -> Source:
    return build_source(SourceSpec(type=kind, uri=uri, options=options), {"token": token} if token else {})


@pytest.mark.parametrize(("kind", "uri"), [(HF, "hf://Org/Name"), (MS, "modelscope://Ns/Name")])
@pytest.mark.parametrize("endpoint", ["ftp://x", "hub.example.com", "https://", "https://x/?a=b", "http://x:99999"])
def test_endpoints_that_are_refused(kind: SourceType, uri: str, endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        build(kind, uri, endpoint=endpoint)


@pytest.mark.parametrize(("kind", "uri"), [(HF, "hf://Org/Name"), (MS, "modelscope://Ns/Name")])
def test_a_token_that_fits_into_no_header(kind: SourceType, uri: str) -> None:
    with pytest.raises(ConfigError, match="stray") as caught:
        build(kind, uri, token="hf_a\nb")
    assert "hf_a" not in str(caught.value)


def test_two_datasets_of_one_repository_share_their_cache_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)

    def identity(uri: str, **options: str) -> str:
        return build(HF, uri, **options).identity

    # A tag of this source names content, so revisions and filters share.
    assert identity("hf://Org/Name") == identity("huggingface://Org/Name@v1", include="*.json")
    other = [identity("hf://Org/Name/sub"), identity("hf://datasets/Org/Name"), identity("hf://Org/Other")]
    assert len({identity("hf://Org/Name"), *other, identity("hf://Org/Name", endpoint="https://hf-mirror.com")}) == 5


@pytest.mark.parametrize(
    ("include", "exclude", "path", "shown"),
    [
        ("", "", "a/b", True),
        ("*.json", "", "deep/down/x.json", True),
        ("*.json", "", "x.JSON", False),
        ("data/", "", "data/x", True),
        ("data/", "", "other/data/x", False),
        ("", "*.bin", "a/x.bin", False),
        ("a/*", "a/b*", "a/bc", False),
    ],
)
def test_filters(include: str, exclude: str, path: str, shown: bool) -> None:
    assert Filters(include, exclude).allow(path) is shown


@pytest.mark.parametrize(
    ("query", "until_s"),
    [
        ("Expires=1781098782&Policy=eyJ&Signature=MEY&Key-Pair-Id=01K", 1781098782.0),
        ("X-Amz-Algorithm=AWS4&X-Amz-Date=20260101T000000Z&X-Amz-Expires=3600&X-Amz-Signature=a", 1767229200.0),
        ("filename=a&revision=master&auth_key=1785586470-fa2b-0-1124", 1785586470.0),
        ("Expires=soon", 1000.0),
        ("X-Amz-Date=yesterday&X-Amz-Expires=3600", 1000.0),
        ("", 1300.0),
    ],
)
def test_when_a_signed_url_expires(query: str, until_s: float) -> None:
    assert expiry_s(f"https://cdn.example.com/x?{query}", 1000.0) == until_s


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "5"}, 5.0),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=489;t=189'}, None),
        ({"RateLimit": "malformed"}, None),
        ({}, None),
    ],
)
def test_how_long_a_hub_wants_to_be_left_alone(headers: dict[str, str], seconds: float | None) -> None:
    assert patience_s(headers) == seconds


def test_a_token_file_is_read_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dsfs.sources.hub.time.monotonic", lambda: now[0])
    path = tmp_path / "token"
    file = TokenFile(str(path))
    assert file.token() is None
    path.write_text("hf_first\n")
    now[0] = 2.0
    assert file.token() == "hf_first"
    path.write_text("hf_other")
    os.utime(path, (1, 1))
    assert file.token() == "hf_first"  # looked at once a second
    now[0] = 4.0
    assert file.token() == "hf_other"
    path.unlink()
    now[0] = 6.0
    assert file.token() is None
