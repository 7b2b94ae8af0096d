"""S3 servers whose certificates a company's own authority has signed: both libraries that read S3 believe it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dsfs.errors import SourceUnavailable
from dsfs.ranges import ByteRange
from dsfs.sources.s3 import S3Options, S3Source
from tests.servers.authority import make_authority
from tests.servers.s3_server import BUCKET, credentials, rclone_s3
from tests.sources.sinks import KeepingSink

CONTENT = b"0123456789" * 300_000


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
@pytest.mark.parametrize("among_others", [False, True])
def test_a_company_has_its_own_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, among_others: bool
) -> None:
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    own = make_authority(tmp_path)

    async def read(endpoint: str) -> bytes:
        source = S3Source(BUCKET, "", S3Options(endpoint=endpoint), credentials())
        try:
            found = [obj async for page in source.list_tree() for obj in page.objects]
            assert [obj.path for obj in found] == ["f"]
            whole = ByteRange(0, len(CONTENT))
            sink = KeepingSink(whole)
            await source.read(found[0], whole, sink)
            return bytes(sink.data)
        finally:
            await source.close()

    with rclone_s3(tmp_path, (own.certificate, own.key)) as server:
        with pytest.raises(SourceUnavailable, match="not trusted"):
            asyncio.run(read(server.endpoint))
        authorities = own.authority
        if among_others:
            authorities = tmp_path / "several.pem"
            other = tmp_path / "other"
            other.mkdir()
            authorities.write_bytes(make_authority(other).authority.read_bytes() + own.authority.read_bytes())
        monkeypatch.setenv(variable, str(authorities))
        server.put("f", CONTENT)
        assert asyncio.run(read(server.endpoint)) == CONTENT
