"""Pages of listings: what is read here is what botocore reads; what is not exactly as expected is left to botocore."""

from __future__ import annotations

from typing import Any

import botocore.session
import pytest
from botocore.parsers import create_parser

from dsfs.sources.s3_parse import parsed_page
from tests.servers.listing_server import ListingServer

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
ONE = (
    "<Contents><Key>{key}</Key><LastModified>2026-03-03T10:00:00.000Z</LastModified><ETag>&quot;{tag}&quot;</ETag>"
    "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><Size>{size}</Size><Owner><ID>me</ID></Owner></Contents>"
)


def document(*parts: str, truncated: str = "<IsTruncated>false</IsTruncated>") -> bytes:
    return f"{HEAD}{truncated}{''.join(parts)}</ListBucketResult>".encode()


def by_botocore(body: bytes) -> dict[str, Any]:
    client = botocore.session.Session().create_client("s3", region_name="us-east-1")
    shape = client.meta.service_model.operation_model("ListObjectsV2").output_shape
    page: dict[str, Any] = create_parser("rest-xml").parse({"body": body, "headers": {}, "status_code": 200}, shape)
    client.close()
    return page


@pytest.mark.parametrize(
    "body",
    [
        document(),
        document(ONE.format(key="a%20b/c&amp;d", tag="0" * 32, size=3), ONE.format(key="é", tag="1-2", size=0)),
        document(
            "<CommonPrefixes><Prefix>a&lt;b/</Prefix></CommonPrefixes><EncodingType>url</EncodingType>",
            "<NextContinuationToken>x&quot;y</NextContinuationToken>",
            truncated="<IsTruncated>true</IsTruncated>",
        ),
        document(
            ONE.format(key="a", tag="0", size=3),
            ONE.format(key="b", tag="0", size=4).replace("<Owner><ID>me</ID></Owner>", ""),
            ONE.format(key="c", tag="0", size=5).replace(
                "</Contents>", "<StorageClass>GLACIER</StorageClass></Contents>"
            ),
        ),
        document(ONE.format(key="a", tag="0&amp;1&#39;", size=3).replace("&quot;", "&#34;")),
        ListingServer([f"{i:04}/f" for i in range(1500)]).page({"prefix": "0"}).encode(),
        ListingServer([f"{i:04}/f" for i in range(1500)]).page({"delimiter": "/"}).encode(),
    ],
)
def test_as_botocore_reads_it(body: bytes) -> None:
    expected, page = by_botocore(body), parsed_page(body)
    assert page is not None
    for name in ("IsTruncated", "NextContinuationToken", "EncodingType"):
        assert page.get(name) == expected.get(name)
    assert page["CommonPrefixes"] == expected.get("CommonPrefixes", [])
    keys = ("Key", "LastModified", "ETag", "Size")
    assert page["Contents"] == [{key: item[key] for key in keys} for item in expected.get("Contents", [])]


GOOD = ONE.format(key="a", tag="0", size=3)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><IsTruncated>false</IsTruncated></html>",
        b"<Error><Code>InternalError</Code></Error>",
        document()[:-5],
        document(GOOD).replace(b"IsTruncated", b"Truncated"),
        document(GOOD, GOOD.replace("<Size>3</Size>", "")),
        document(GOOD.replace("<Size>3</Size>", "<Size>three</Size>")),
        document(GOOD.replace("<Key>a</Key>", "<Key>a</Key><Key>b</Key>")),
        document(GOOD.replace("<Key>a</Key>", "<Key><![CDATA[a<b]]></Key>")),
        document(GOOD.replace("<Key>a</Key>", "<Key>&#x61;</Key>")),
        document(GOOD.replace("10:00:00.000Z", "10:00:00")),
        document(GOOD.replace("<Contents>", "<Contents >")),
        document("<CommonPrefixes><Prefix>a/</Prefix><X/></CommonPrefixes>"),
        document("<CommonPrefixes><Prefix>a&#xA;b/</Prefix></CommonPrefixes>"),
        document("<NextContinuationToken>a&#9;b</NextContinuationToken>"),
        document("<NextContinuationToken>a&b</NextContinuationToken>"),
        document("<NextContinuationToken>a</NextContinuationToken>" * 2),
        document(f"<!-- {GOOD} -->"),
        document(GOOD.replace("<Contents>", "<Content>"), GOOD),
        document(GOOD, "<Contents/>"),
        document(GOOD, "<Prefix>a</Key>"),
        document(GOOD.replace("<Key>a", "<Key>a\r")),
        document(GOOD).replace(b"UTF-8", b"ISO-8859-1"),
        document("<Contents>", "<Owner></Owner>" * 50, "<Key>"),
        document(GOOD).replace(b"<Key>a", b"<Key>\xff"),
    ],
)
def test_what_is_left_to_botocore(body: bytes) -> None:
    assert parsed_page(body) is None
