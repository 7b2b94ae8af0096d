"""AWS Signature Version 4 for a GET without a body: 20 µs where botocore's general signer takes ten times that.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html; tests compare it with botocore.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import quote

_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Keys:
    """What a request is signed with, until ``expires_s`` (Unix time). Never shown."""

    access_key: str
    secret_key: str
    token: str | None
    expires_s: float

    def __repr__(self) -> str:
        return "Keys(…)"


def path_of(base: str, bucket: str, key: str) -> str:
    """The path of an object under an endpoint whose URL has the path ``base``, as it is sent and signed."""
    return f"{base}/{quote(bucket)}/{quote(key.encode('utf-8', 'surrogateescape'), safe='/-_.~')}"


def signed(
    host: str, path: str, headers: Mapping[str, str], keys: Keys | None, region: str, now_s: float | None = None
) -> dict[str, str]:
    """The headers of ``GET path``, with those that sign them. ``keys`` None: as they are (anonymous).

    ``headers`` have lower-case names; ``host`` is what the Host header says.
    """
    if keys is None:
        return {"host": host, **headers}
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    sent = {"host": host, **headers, "x-amz-content-sha256": _EMPTY_SHA256, "x-amz-date": moment}
    if keys.token:
        sent["x-amz-security-token"] = keys.token
    names = sorted(sent)
    canonical = "\n".join(
        ["GET", path, "", *(f"{name}:{sent[name].strip()}" for name in names), "", ";".join(names), _EMPTY_SHA256]
    )
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.digest(_signing_key(keys.secret_key, moment[:8], region), text.encode(), "sha256").hex()
    sent["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    return sent


@lru_cache(maxsize=64)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
