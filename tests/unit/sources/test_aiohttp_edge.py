"""What every client of aiohttp shares: errors that hold no URL, and whose credentials are whose."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from dsfs.errors import SourceError, SourceTimeout, SourceUnavailable, SourceUnsupported
from dsfs.sources.aiohttp_edge import harmless, origin_of, proxy_of, translated
from dsfs.sources.http import HttpSource
from tests.servers import hostile as web

SIGNED = "http:///f?Signature=s3cr3t"


@pytest.mark.parametrize(
    ("error", "kind", "shown"),
    [
        (TimeoutError(), SourceTimeout, True),
        (aiohttp.ServerTimeoutError(), SourceTimeout, True),
        (aiohttp.ClientPayloadError("cut off"), SourceUnavailable, True),
        (OSError(5, "no"), SourceUnavailable, True),
        (aiohttp.ConnectionTimeoutError(f"Connection timeout to host {SIGNED}"), SourceTimeout, False),
        (aiohttp.NonHttpUrlClientError(SIGNED), SourceUnavailable, False),
        (aiohttp.ServerDisconnectedError(f"302 Location: {SIGNED}"), SourceUnavailable, False),
        (aiohttp.InvalidURL(SIGNED), SourceUnsupported, False),
        (ValueError(SIGNED), SourceUnsupported, False),
        (aiohttp.ClientResponseError(None, (), message=SIGNED), SourceUnavailable, False),  # type: ignore[arg-type]
    ],
)
def test_an_error_by_our_names(error: Exception, kind: type[SourceError], shown: bool) -> None:
    ours = translated(error, "http://h/f")
    assert type(ours) is kind
    assert str(ours).startswith("http://h/f: ")
    assert "s3cr3t" not in str(ours)
    assert harmless(error) is (error if shown else None)


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("http://h/a?b", "http://h:80/c", True),
        ("https://h/a", "https://H:443/", True),
        ("https://h/a", "http://h/a", False),
        ("http://h/a", "http://h:8080/a", False),
        ("http://h/a", "http://h.evil/a", False),
        ("http://h/a", "http://evil/h", False),
    ],
)
def test_who_gets_credentials(url: str, other: str, same: bool) -> None:
    assert (origin_of(url) == origin_of(other)) is same


def test_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "near")
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("all_proxy", raising=False)
    found = [proxy_of(url) for url in ("http://far/x", "http://near/x", "https://far/x")]
    assert found == ["http://proxy:3128", None, None]


def test_a_signed_url_is_not_in_what_an_error_came_of() -> None:
    """A traceback of what happens behind it would show that too."""
    with web.hostile() as server:
        server.always("/f", lambda *_: web.Answer(302, {"Location": SIGNED}, b""))

        async def run() -> None:
            source = HttpSource(f"{server.url}f")
            with pytest.raises(SourceError) as caught:
                await source.stat("f")
            error: BaseException | None = caught.value
            while error is not None:
                assert "s3cr3t" not in f"{error} {error!r}"
                error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
            await source.close()

        asyncio.run(run())
