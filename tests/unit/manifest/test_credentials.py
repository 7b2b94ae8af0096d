"""What counts as a credential in the wrong place, and what does not."""

from __future__ import annotations

import json

import pytest

from dsfs.manifest.credentials import credential_in_options, credential_in_uri

VALUE = "hunter2"
HARMLESS = """
branch commit depth submodules region endpoint provider syncMode anonymous include exclude repoType revision
sourcePath hdfsConfigName coreSiteXml hdfsSiteXml username host port dbname tables name pythonVersion
pipIndexUrl condaEnvironmentYml bandwidthLimit signature_version tokenizer Accept User-Agent directory
mountport version keyPrefix partition_keys
"""


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://user:{VALUE}@bucket/x",
        f"https://:{VALUE}@host/x",
        f"https://user%3A{VALUE}@host/x",
        f"https://user:{VALUE}/more@host/x",
        f"https://user:{VALUE}?more@host/x",
        f"user:{VALUE}@host:repo.git",
        f"git+https://user:{VALUE}@host/x.git",
        f"fsspec+zip://*.csv::https://user:{VALUE}@host/x.zip",
        f"https://ghp_{VALUE}@github.com/a/b.git",
        f"https://host/x?X-Amz-Signature={VALUE}",
        f"https://host/x?x-amz-security-token={VALUE}",
        f"https://host/x?a=b&access_token={VALUE}",
        f"https://host/x?a=b;token={VALUE}",
        f"https://host/x?sig={VALUE}",
        f"https://host/x?AWSAccessKeyId={VALUE}",
        f"https://host/x?X-Amz-Credential={VALUE}",
        f"https://host/x?%74oken={VALUE}",
        f"https://host/x#access_token={VALUE}",
        f"hf://a/b?Secret-Key={VALUE}",
        f"hf://a/b?PASSWORD={VALUE}",
    ],
)
def test_a_uri_that_carries_one(uri):
    why = credential_in_uri(uri)
    assert why is not None
    assert "secretRef" in why
    assert "environment" in why
    assert VALUE not in why


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/prefix",
        "https://user@host/x",
        "https://user:@host/x",
        "http://host:8080/a@b",
        "http://host:8080",
        "http://[::1]:8080/a@b",
        "nfs://host:/export/a@b",
        "git@host:owner/repo.git",
        "ssh://git@host:22/owner/repo.git",
        "hdfs://a:9000,b:9000/x@y",
        "hf://datasets/a/b@main?repoType=dataset&revision=x",
        "https://host/x?tokenizer=a&signature_version=s3v4&versionId=3&author=me",
        "https://host/x?key=file.txt",
        "fsspec+zip://a.csv::https://host:80/x@y",
        "/data/a:b@c",
        "manual://",
    ],
)
def test_a_uri_that_carries_none(uri):
    assert credential_in_uri(uri) is None


@pytest.mark.parametrize(
    "key",
    [
        "token", "Token", "access_token", "password", "PASSWORD", "secret", "secret-key", "secretKey", "access-key",
        "aws_secret_access_key", "AWSAccessKeyId", "aws_session_token", "X-Amz-Security-Token", "sig", "Authorization",
        "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Auth-Token", "X-Api-Key", "PRIVATE-TOKEN", "account_key",
        "connection_string", "ssh-privatekey", "ssh-privatekey-passphrase", "credentials", "key", "pwd",
        "client_secret",
    ],
)  # fmt: skip
def test_an_option_that_is_one(key):
    found = credential_in_options({"region": "x", key: VALUE})
    assert found is not None
    assert found[0] == key
    assert VALUE not in found[1]


@pytest.mark.parametrize(
    "value",
    [
        f"Bearer {VALUE}",
        f"basic {VALUE}",
        f"http://u:{VALUE}@h",
        f"a https://h/?sig={VALUE}",
        json.dumps({"headers": {"Authorization": f"token {VALUE}"}}),
        json.dumps({"client_kwargs": [{"aws_secret_access_key": VALUE}]}),
        json.dumps([f"s3://k:{VALUE}@h/b"]),
        f"<configuration><property><name>x</name><value>hdfs://u:{VALUE}@nn</value></property></configuration>",
    ],
)
def test_an_option_whose_value_carries_one(value):
    found = credential_in_options({"x": value})
    assert found is not None
    assert VALUE not in found[1]


def test_options_that_are_none():
    options = dict.fromkeys(HARMLESS.split(), "value")
    assert credential_in_options(options | {"endpoint": "http://127.0.0.1:9000", "include": "token*"}) is None
    xml = "<value>hdfs://nn:8020</value></property><property><value>nn/_HOST@REALM</value>"
    client = json.dumps({"trust_env": True, "headers": {"User-Agent": "x"}, "token": False, "of": ["https://h:443/"]})
    assert credential_in_options({"coreSiteXml": xml, "client_kwargs": client, "x": "{no json"}) is None
