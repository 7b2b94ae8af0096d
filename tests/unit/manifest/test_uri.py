"""Source URIs of the command line: type, normalised URI and name."""

from __future__ import annotations

import pytest

from dsfs.errors import ConfigError
from dsfs.manifest.schema import SourceType
from dsfs.manifest.uri import manifest_from_uri


def understood(uri, options=None):
    manifest = manifest_from_uri(uri, options or {}, base_dir="/base")
    assert manifest.namespace == "default"
    return manifest.source.type.value, manifest.source.uri, manifest.name


@pytest.mark.parametrize(
    ("uri", "kind", "normalised", "name"),
    [
        ("s3://bucket/some/Prefix", "S3", None, "prefix"),
        ("s3://bucket/some/prefix/", "S3", None, "prefix"),
        ("s3://bucket", "S3", None, "bucket"),
        ("s3://bucket/", "S3", None, "bucket"),
        ("S3://Bucket/X", "S3", "s3://Bucket/X", "x"),
        ("http://host/dir/", "HTTP", None, "dir"),
        ("https://host/a/file.tar?x=y/z#f/g", "HTTP", None, "file.tar"),
        ("http://127.0.0.1:8000/", "HTTP", None, "127.0.0.1"),
        ("http://host", "HTTP", None, "host"),
        ("http://host/My%20Data_1", "HTTP", None, "my-data-1"),
        ("http://host/%E6%95%B0", "HTTP", None, "data"),
        ("https://host/owner/Repo.git", "GIT", None, "repo"),
        ("https://host/owner/repo.git/", "GIT", None, "repo"),
        ("https://user@host/owner/repo.git?x=1", "GIT", None, "repo"),
        ("git+https://host/owner/repo", "GIT", "https://host/owner/repo", "repo"),
        ("git+ssh://git@host:2222/owner/repo", "GIT", "ssh://git@host:2222/owner/repo", "repo"),
        ("git+file:///srv/repo", "GIT", "file:///srv/repo", "repo"),
        ("file:///srv/repo.git", "GIT", None, "repo"),
        ("git://host/repo.git", "GIT", None, "repo"),
        ("ssh://git@host/repo.git", "GIT", None, "repo"),
        ("git@host:owner/repo.git", "GIT", None, "repo"),
        ("git@host:repo.git", "GIT", None, "repo"),
        ("/a/dir", "PVC", None, "dir"),
        ("/a/dir/", "PVC", "/a/dir", "dir"),
        ("//a//dir", "PVC", "/a/dir", "dir"),
        ("/a/what?#ever", "PVC", None, "what--ever"),
        ("/", "PVC", "/", "data"),
        ("./rel/dir", "PVC", "/base/rel/dir", "dir"),
        ("../rel", "PVC", "/rel", "rel"),
        (".", "PVC", "/base", "base"),
        ("file:///a/dir", "PVC", None, "dir"),
        ("nfs://host/export/path", "NFS", None, "path"),
        ("nfs://host", "NFS", None, "host"),
        ("hdfs://nn:9000/warehouse/x", "HADOOP", None, "x"),
        ("hdfs:///warehouse/x", "HADOOP", None, "x"),
        ("webhdfs://nn:9870/x", "HADOOP", None, "x"),
        ("gs://bucket/x", "FSSPEC", None, "x"),
        ("az://container/x", "FSSPEC", None, "x"),
        ("abfs://container@account/x", "FSSPEC", None, "x"),
        ("hf://datasets/ORG/NAME", "HUGGING_FACE", None, "name"),
        ("hf://ORG/Name_v1.5", "HUGGING_FACE", None, "name-v1.5"),
        ("huggingface://Owner/Name?repoType=DATASET", "HUGGING_FACE", None, "name"),
        ("modelscope://ns/Model", "MODEL_SCOPE", None, "model"),
        ("dataset://ns/name", "REFERENCE", None, "name"),
        ("pvc://claim/dir", "PVC", None, "dir"),
        ("pvc://claim", "PVC", None, "claim"),
        ("manual://", "MANUAL", None, "data"),
        ("fsspec+memory://x/y", "FSSPEC", "memory://x/y", "y"),
        ("fsspec+sftp://user@host/dir", "FSSPEC", "sftp://user@host/dir", "dir"),
        ("fsspec+zip://*.csv::https://host/X.zip", "FSSPEC", "zip://*.csv::https://host/X.zip", "x.zip"),
    ],
)
def test_what_a_uri_means(uri, kind, normalised, name):
    assert understood(uri) == (kind, normalised or uri, name)


def test_options_are_passed_through():
    manifest = manifest_from_uri("git@host:a.git", {"revision": "v1", "depth": "1"}, base_dir="/")
    assert manifest.source.options == {"revision": "v1", "depth": "1"}
    assert manifest.source.type is SourceType.GIT
    assert manifest.mount_options.uid is None


def test_a_long_name_is_cut():
    assert understood("s3://bucket/" + "x" * 252 + "--yyy")[2] == "x" * 252


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("", "is empty"),
        ("ftp://host/x", "the scheme ftp:// is not known (known are abfs, abfss, az, dataset, dataworld, file, git"),
        ("rel/dir", "begins with ./"),
        ("bucket", "neither a source URI nor a path"),
        ("s3://", "names nothing behind s3://"),
        ("s3:///key", "names nothing"),
        ("http:///x", "names nothing"),
        ("file://host/x", "three slashes"),
        ("file://", "three slashes"),
        ("http://host:port/x", "host or port"),
        ("http://host:99999/x", "host or port"),
        ("http://[::1/x", "host or port"),
        ("s3://a\nb", "control character"),
        ("s3://a\0b", "control character"),
        ("s3://a\udcffb", "control character"),
        ("fsspec+", "neither"),
        ("://x", "neither"),
    ],
)
def test_a_uri_that_cannot_be_used(uri, expected):
    with pytest.raises(ConfigError) as caught:
        understood(uri)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("s3://user:hunter2@bucket/x", {}),
        ("https://host/x?X-Amz-Signature=hunter2", {}),
        ("https://user:hun/ter2@host:x/hunter2", {}),
        ("user:hunter2@host:x", {}),
        ("s3://bucket", {"secret-key": "hunter2"}),
        ("http://host/", {"Authorization": "Basic hunter2"}),
        ("http://host/", {"Cookie": "hunter2"}),
    ],
)
def test_a_credential_is_refused_and_not_shown(uri, options):
    with pytest.raises(ConfigError) as caught:
        understood(uri, options)
    assert "secretRef" in str(caught.value)
    assert "environment" in str(caught.value)
    assert "hunter2" not in str(caught.value)
