"""Our signatures are botocore's, for any key, any headers and any moment."""

from __future__ import annotations

import datetime
from unittest import mock

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from dsfs.sources.s3_sign import Keys, path_of, signed

TEXT = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=20)


@given(
    key=TEXT,
    token=st.none() | st.just("a/long+token=="),
    tag=st.none() | st.just('"abc-3"'),
    at=st.integers(10**9, 4 * 10**9),
    base=st.sampled_from(["", "/some/where"]),
)
def test_the_same_as_botocore(key: str, token: str | None, tag: str | None, at: int, base: str) -> None:
    headers = {"range": "bytes=0-9"} | ({"if-match": tag} if tag else {})
    path = path_of(base, "a-bucket", key)
    ours = signed("host:9000", path, headers, Keys("AKEY", "secret/+", token, 0), "eu-north-1", at)

    request = AWSRequest("GET", f"http://host:9000{path}", headers={**headers, "Host": "host:9000"}, data=b"")
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    with (
        mock.patch("botocore.auth.get_current_datetime", return_value=moment, create=True),
        mock.patch("botocore.compat.get_current_datetime", return_value=moment, create=True),
    ):
        S3SigV4Auth(Credentials("AKEY", "secret/+", token), "s3", "eu-north-1").add_auth(request)
    assert ours["authorization"] == request.headers["Authorization"]
    assert ours["x-amz-date"] == moment.strftime("%Y%m%dT%H%M%SZ")


def test_anonymous_requests_are_not_signed_and_keys_are_not_shown() -> None:
    assert signed("h", "/b/k", {"range": "bytes=0-1"}, None, "r") == {"host": "h", "range": "bytes=0-1"}
    assert "secret" not in repr(Keys("a", "secret", "secret", 0))
