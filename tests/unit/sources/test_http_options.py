"""Which headers an HTTP dataset sends, and where a key that a site wants in one has its place."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog

from dsfs.datasets.proofs import Proofs
from dsfs.errors import ConfigError
from dsfs.manifest.credentials import credential_in_options
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.manifest.secret_keys import check_secret_values, is_header
from dsfs.ranges import ByteRange
from dsfs.sources.http_options import secret_headers_of
from dsfs.sources.registry import build_source
from tests.servers import hostile as web
from tests.servers.web_tree import as_html
from tests.sources.sinks import KeepingSink, WireReading

KEY = "fake-key-1"
DATA = b"0123456789"
SENT = ["X-API-Key", "x-api-key", "PRIVATE-TOKEN", "X-Auth-Token", "Cookie", "Authorization", "Api-Key"]
SENT += ["X-Access-Token", "Private-Token", "JOB-TOKEN", "Deploy-Token", "Ocp-Apim-Subscription-Key"]
KEPT = ["username", "token", "access-key", "ssh-privatekey", "ca.crt", "tls.key", "config", "apikey", "x", "X"]
OF_ENVIRONMENTS = ["PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "X_API_KEY", "Straße", "A B", ""]
OF_PROGRAMS = ["ClientSecret", "AccessKey", "SecretKey", "ApiKey", "Password", "Username", "Config", "Certificate"]
OF_PROGRAMS += ["DB-PASSWORD", "HF-TOKEN", "ConnectionStrings--Default", "api-key", "private-token", "cookie"]
OF_REQUESTS = ["Host", "Connection", "Range", "Accept", "Accept-Language", "X-Tenant", "Proxy-Authorization"]


@pytest.mark.parametrize("key", SENT)
def test_a_header_that_is_refused_as_an_option_goes_into_the_secret(key: str) -> None:
    found = credential_in_options({key: KEY})
    assert found is not None
    assert "into its Secret under its own name" in found[1]
    assert check_secret_values({key: f" {KEY}\n"}, SourceType.HTTP) == {key: KEY}
    assert secret_headers_of({key: KEY, "username": ""}, "https://h/") == {key: KEY}


@pytest.mark.parametrize("key", [*KEPT, *OF_ENVIRONMENTS, *OF_PROGRAMS, *OF_REQUESTS])
def test_what_is_for_others_is_not_sent(key: str) -> None:
    """Nor is it a reason to refuse the rest, whatever it holds."""
    assert not is_header(key)
    with structlog.testing.capture_logs() as logs:
        assert secret_headers_of({key: KEY, "token": "t"}, "https://h/") == {}
        build_source(SourceSpec(type="HTTP", uri="https://h/"), {key: f"{KEY}\n-----END-----", "token": "t"})
    assert logs == []


@pytest.mark.parametrize("kind", [SourceType.S3, SourceType.GIT, SourceType.FSSPEC])
def test_no_other_source_has_headers(kind: SourceType) -> None:
    with pytest.raises(ConfigError, match="means nothing"):
        check_secret_values({"X-API-Key": KEY}, kind)


@pytest.mark.parametrize(
    ("secret", "sent", "why"),
    [
        ({"Authorization": KEY, "token": "t"}, {}, "Authorization: is made of its token"),
        ({"Authorization": KEY, "username": "u"}, {}, "Authorization: is made of its token"),
        ({"X-API-Key": "fake-key-2", "x-api-key": KEY}, {"X-API-Key": "fake-key-2"}, "x-api-key: is there in other"),
        ({"X-API-Key": f"{KEY}\r\nHost: h"}, {}, "X-API-Key: is not plain ASCII"),
        ({"X-API-Key": f"{KEY}é", "Cookie": "c"}, {"Cookie": "c"}, "X-API-Key: is not plain ASCII"),
    ],
)
def test_a_header_that_cannot_be_sent_is_passed_over_and_refused_where_it_is_set(
    secret: dict[str, str], sent: dict[str, str], why: str
) -> None:
    with structlog.testing.capture_logs() as logs:
        assert secret_headers_of(secret, f"https://{why}/{sorted(secret)}") == sent
    assert [(each["log_level"], f"{each['header']}: {each['reason']}"[: len(why)]) for each in logs] == [
        ("warning", why)
    ]
    assert KEY not in str(logs)
    build_source(SourceSpec(type="HTTP", uri="https://h/"), secret)
    with pytest.raises(ConfigError, match=why) as caught:
        check_secret_values(secret, SourceType.HTTP)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_unknown_is_told_with_the_headers_there_are() -> None:
    with pytest.raises(ConfigError, match=r"and headers: Authorization, Cookie, .* such as X-API-Key"):
        check_secret_values({"apikey": KEY}, SourceType.HTTP)


@pytest.mark.parametrize("options", [{}, {"list": "urls.txt"}], ids=["an index", "a list"])
@pytest.mark.parametrize("secret", [{"X-API-Key": KEY}, {"Authorization": KEY}], ids=["another header", "its own"])
def test_netrc_is_asked_where_no_authorization_is_in_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], secret: dict[str, str]
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password fake-passw0rd\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with web.hostile() as server:
        server.files.update({"/f": DATA, "/urls.txt": b"f\n"})

        async def run() -> None:
            uri = server.url if options else f"{server.url}f"
            source = build_source(SourceSpec(type="HTTP", uri=uri, options=options), secret)
            assert await source.stat("f") is not None
            await source.close()

        asyncio.run(run())
        assert server.asked
        expected = secret.get("Authorization", "Basic c29tZW9uZTpmYWtlLXBhc3N3MHJk")
        assert {asked.headers.get("authorization") for asked in server.asked} == {expected}
        assert {asked.headers.get("x-api-key") for asked in server.asked} == {secret.get("X-API-Key")}


@pytest.mark.parametrize("options", [{}, {"list": "urls.txt"}], ids=["an index", "a list"])
def test_it_is_sent_to_its_own_host_and_to_no_other(options: dict[str, str]) -> None:
    with web.hostile() as server, web.hostile() as elsewhere:
        server.files.update({"/data/": b'<a href="f">f</a><a href="g">g</a>', "/data/f": DATA, "/data/g": DATA})
        server.files["/data/urls.txt"] = b"f\ng\n"
        server.always("/data/", as_html)
        elsewhere.files["/g"] = DATA
        server.always("/data/g", lambda *_: web.Answer(302, {"Location": f"{elsewhere.url}g"}, b""))

        async def run() -> None:
            spec = SourceSpec(type="HTTP", uri=f"{server.url}data/", options=options)
            source = build_source(spec, {"X-API-Key": KEY, "access-key": "not-for-you"})
            async for _page in source.list_tree():
                pass
            for reading in (source, *([] if options else [WireReading(source)])):
                for name in "fg":
                    obj = await source.stat(name)
                    assert obj is not None
                    sink = KeepingSink(ByteRange(2, 7))
                    await reading.read(obj, sink.wanted, sink)
                    assert sink.data == DATA[2:7]
            assert KEY not in f"{source.uri} {source.identity} {source!r}"
            await source.close()

        asyncio.run(run())
        assert {asked.path for asked in server.asked} >= {"/data/f", "/data/g"}
        assert all(asked.headers.get("x-api-key") == KEY for asked in server.asked)
        assert elsewhere.asked
        assert not any("x-api-key" in asked.headers for asked in elsewhere.asked)
        assert not any("not-for-you" in asked.headers.values() for asked in (*server.asked, *elsewhere.asked))


def test_another_key_is_another_access_to_the_same_source(tmp_path_factory: pytest.TempPathFactory) -> None:
    proofs = Proofs(str(tmp_path_factory.mktemp("proofs")))
    accesses = [{"X-API-Key": KEY}, {"X-API-Key": "fake-key-2"}, {"X-Auth-Token": KEY}, {}]
    sources = [build_source(SourceSpec(type="HTTP", uri="https://h/"), each) for each in accesses]
    assert len({source.identity for source in sources}) == 1
    pairs = zip(sources, accesses, strict=True)
    assert len({proofs.fingerprint(source.identity, each) for source, each in pairs}) == len(accesses)
