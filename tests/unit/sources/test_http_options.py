"""Which headers an HTTP dataset sends, and where a key that a site wants in one has its place."""

from __future__ import annotations

import asyncio

import pytest

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
KEPT = ["username", "token", "access-key", "ssh-privatekey", "ca.crt", "tls.key", "config", "apikey", "x", "X"]
OF_ENVIRONMENTS = ["PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "X_API_KEY", "Straße", "A B", ""]


@pytest.mark.parametrize("key", SENT)
def test_a_header_that_is_refused_as_an_option_goes_into_the_secret(key: str) -> None:
    found = credential_in_options({key: KEY})
    assert found is not None
    assert "into its Secret under its own name" in found[1]
    assert check_secret_values({key: f" {KEY}\n"}, SourceType.HTTP) == {key: KEY}
    assert secret_headers_of({key: KEY, "username": ""}, {"Accept": "*/*"}) == {key: KEY}


@pytest.mark.parametrize("key", [*KEPT, *OF_ENVIRONMENTS])
def test_what_is_for_others_is_not_sent(key: str) -> None:
    assert not is_header(key)
    assert secret_headers_of({key: KEY}, {}) == {}


@pytest.mark.parametrize("kind", [SourceType.S3, SourceType.GIT, SourceType.FSSPEC])
def test_no_other_source_has_headers(kind: SourceType) -> None:
    with pytest.raises(ConfigError, match="means nothing"):
        check_secret_values({"X-API-Key": KEY}, kind)


@pytest.mark.parametrize(
    ("secret", "options", "why"),
    [
        ({"Range": KEY}, {}, "Range in the Secret is set by dsfs itself"),
        ({"Authorization": KEY, "token": "t"}, {}, "made of its token"),
        ({"X-Team": KEY}, {"x-team": "vision"}, "in the options"),
        ({"X-Team": KEY, "x-team": "vision"}, {}, "in other letters"),
        ({"X-API-Key": f"{KEY}\r\nHost: h"}, {}, "not plain ASCII"),
        ({"X-API-Key": f"{KEY}é"}, {}, "not plain ASCII"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused(secret: dict[str, str], options: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        build_source(SourceSpec(type="HTTP", uri="https://h/", options=options), secret)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_unknown_is_told_with_what_a_header_looks_like() -> None:
    with pytest.raises(ConfigError, match="a header begins with a capital or x-, such as X-API-Key"):
        check_secret_values({"apikey": KEY}, SourceType.HTTP)


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
