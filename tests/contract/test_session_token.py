"""S3 session tokens that expire while one large file is read: each is renewed, and the reader notices nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.mounts import Mounts
from tests.servers.token_server import token_server

MIB = 1 << 20


@pytest.mark.parametrize(("session", "refusal"), [("direct", 400), ("direct", 403), ("pyfuse3", 403)])
def test_a_token_that_expires_within_one_read_is_renewed(
    mounts: Mounts, tmp_path: Path, session: str, refusal: int
) -> None:
    """Ranges are in flight on several connections when it happens."""
    with token_server() as server:
        server.data, server.refusal = random.Random(7).randbytes(48 * MIB + 321), refusal
        env = server.environment(tmp_path / "token")
        mount = mounts.mount("s3://bucket", "--option", f"endpoint={server.url}", session=session, env=env)
        mount.wait_phase("READY")
        server.expires_behind = (2, 6)
        with (mount.root / "f").open("rb") as file:
            assert file.read() == server.data
        assert server.refused >= 2, "ranges of this read were refused"
        assert server.given >= 3, "and the token was renewed for them"
        dataset = mount.dataset()
        assert (dataset["phase"], dataset["message"]) == ("READY", "")
        assert "token-" not in mount.log()
        mounts.close_quietly()
