"""S3 and STS of one bucket, as far as reading takes, for tokens that expire: each AssumeRoleWithWebIdentity gives a new
one, and only the newest that was not expired by the test is accepted. Says for each request of S3 how it was signed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.process import HOST
from tests.servers.threaded import send, serving

DATA = bytes(range(256)) * 1000
BUCKET = "bucket"
_ETAG = '"0123456789abcdef0123456789abcdef"'
_TIME = "Tue, 03 Mar 2026 10:00:00 GMT"


class TokenServer:
    def __init__(self) -> None:
        self.given = 0
        self.expired = 0
        """Tokens up to this number are not accepted any more."""
        self.data = DATA
        self.expires_behind: tuple[int, ...] = ()
        """With which numbers of ranges that were read all tokens of then expire."""
        self.read = 0
        self.refused = 0
        self.refusal = 400
        """The status with which an expired token is refused."""
        self.lock = threading.Lock()
        self.heads_refused = False
        """HEAD of an object is answered with 400, whoever asks."""
        self.region = ""
        """Where the bucket is; anywhere if empty."""
        self.signed: list[tuple[str, str]] = []
        """(region, token) of each request of S3."""
        self.url = ""

    def environment(self, token_file: Path) -> dict[str, str]:
        """Of a role by web identity, as in a pod (IRSA), and nothing else of this machine."""
        token_file.write_text("fake-web-identity")
        return {
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_ROLE_ARN": "arn:aws:iam::1:role/r",
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(token_file),
            "AWS_ENDPOINT_URL_STS": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: TokenServer

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.state.given += 1
        until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._answer(
            200,
            f"<AssumeRoleWithWebIdentityResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'>"
            f"<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>id</AccessKeyId><SecretAccessKey>fake</SecretAccessKey>"
            f"<SessionToken>token-{self.state.given}</SessionToken><Expiration>{until}</Expiration></Credentials>"
            "<AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s</Arn><AssumedRoleId>r:s</AssumedRoleId></AssumedRoleUser>"
            "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        )

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        region = self.headers.get("Authorization", "///").split("/")[2]
        token = self.headers.get("X-Amz-Security-Token", "")
        self.state.signed.append((region, token))
        if self.state.region and region != self.state.region:
            body = f"<Error><Code>AuthorizationHeaderMalformed</Code><Region>{self.state.region}</Region></Error>"
            self._answer(400, body, {"x-amz-bucket-region": self.state.region})
        elif token.startswith("token-") and int(token.removeprefix("token-")) <= self.state.expired:
            self.state.refused += 1
            self._answer(self.state.refusal, "<Error><Code>ExpiredToken</Code><Message>It has.</Message></Error>")
        elif urlsplit(self.path).path.rstrip("/") == f"/{BUCKET}":
            self._answer(
                200,
                f"<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>false</IsTruncated><Contents><Key>f</Key>"
                f"<LastModified>2026-03-03T10:00:00.000Z</LastModified><ETag>{_ETAG}</ETag><Size>{len(self.state.data)}</Size>"
                "</Contents></ListBucketResult>",
                {"x-amz-bucket-region": self.state.region or "us-east-1"},
            )
        elif self.command == "HEAD" and self.state.heads_refused:
            self._answer(400, "")
        elif self.command == "HEAD":
            self._answer(200, self.state.data)
        else:
            first, last = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
            with self.state.lock:
                self.state.read += 1
                if self.state.read in self.state.expires_behind:
                    self.state.expired = self.state.given
            self._answer(
                206,
                self.state.data[first : last + 1],
                {"Content-Range": f"bytes {first}-{last}/{len(self.state.data)}"},
            )

    def _answer(self, status: int, body: str | bytes, headers: dict[str, str] | None = None) -> None:
        raw = body.encode() if isinstance(body, str) else body
        send(self, status, raw, {"ETag": _ETAG, "Last-Modified": _TIME, **(headers or {})})


@contextlib.contextmanager
def token_server() -> Iterator[TokenServer]:
    state = TokenServer()
    with serving(type("Handler", (_Handler,), {"state": state})) as port:
        state.url = f"http://{HOST}:{port}"
        yield state
