"""The connection to an S3 server."""

from __future__ import annotations

import asyncio

from dsfs.sources.s3_client import S3Connection, S3Options
from dsfs.sources.timeouts import DEFAULT_TIMEOUTS


def test_clients_share_what_botocore_knows() -> None:
    """A node has one for each dataset, and some that a resync has replaced."""

    async def loaders() -> list[object]:
        options = S3Options(endpoint="http://127.0.0.1:1", region="us-east-1", anonymous="true")
        connections = [S3Connection("bucket", options, {}, DEFAULT_TIMEOUTS) for _ in range(2)]
        try:
            return [(await connection.opened()).client._loader for connection in connections]
        finally:
            for connection in connections:
                await connection.close()

    first, second = asyncio.run(loaders())
    assert first is second
