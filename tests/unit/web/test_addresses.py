"""Addresses of callers: read in every spelling that proxies use, grouped, and never more than an address."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokflask.web.addresses import UNKNOWN, TrustedProxies, group_address, read_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        (" 203.0.113.9\t", "203.0.113.9"),
        ('"203.0.113.9"', "203.0.113.9"),
        ("'203.0.113.9:80'", "203.0.113.9"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ('"[2001:db8::1]:4711"', "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("[::ffff:102:304]:9", "1.2.3.4"),
        *((text, UNKNOWN) for text in ("", " ", "unknown", "_hidden", "for=1.2.3.4", "1.2.3", "1.2.3.4.5")),
        *((text, UNKNOWN) for text in ("01.2.3.4", "1.2.3.4/24", "a:b", "[]", "[", ":::", "٣.2.3.4")),
        *((text, UNKNOWN) for text in ("1" * 10_000, "1.2.3.4" + " " * 100, "@unix", "localhost")),
    ],
)
def test_spellings(text: str, address: str) -> None:
    """A port, brackets, quotes, spaces and zones do not count; what is no address is one word."""
    assert read_address(text) == address


@given(st.text(alphabet="0123456789abcdefABCDEF:.[]%\"' ,x٣", max_size=90) | st.text())
def test_whatever_is_sent(text: str) -> None:
    """The result is an address in its normal form, or the one word."""
    address = read_address(text)
    assert address == UNKNOWN or str(ipaddress.ip_address(address)) == address
    assert len(group_address(address)) < 50


def test_groups() -> None:
    """An IPv4 address counts alone, an IPv6 address with its /64."""
    assert group_address("203.0.113.9") == "203.0.113.9"
    assert group_address("2001:db8:1:2::1") == group_address("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert group_address("2001:db8:1:3::1") != group_address("2001:db8:1:2::1")
    assert group_address(UNKNOWN) == UNKNOWN


def see(hops: int, forwarded: str | None, peer: str = "10.0.0.1", proto: str = "") -> tuple[str, str]:
    """The address and the scheme that the app gets."""
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], _start: Any) -> list[bytes]:
        seen.append(environ)
        return []

    environ = {"REMOTE_ADDR": peer, "wsgi.url_scheme": "http", "HTTP_X_FORWARDED_PROTO": proto}
    if forwarded is not None:
        environ["HTTP_X_FORWARDED_FOR"] = forwarded
    TrustedProxies(app, hops)(environ, lambda *_: None)
    return seen[0]["REMOTE_ADDR"], seen[0]["wsgi.url_scheme"]


@pytest.mark.parametrize(
    ("hops", "forwarded", "address"),
    [
        (0, "6.6.6.6", "10.0.0.1"),
        (1, None, "10.0.0.1"),
        (1, "", "10.0.0.1"),
        (1, "203.0.113.9:4711", "203.0.113.9"),
        (1, "6.6.6.6, 203.0.113.9", "203.0.113.9"),
        (1, '"6.6.6.6, 203.0.113.9', "203.0.113.9"),  # the client's open quote
        (1, '6.6.6.6,\\", 203.0.113.9', "203.0.113.9"),
        (2, "6.6.6.6, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        (2, "203.0.113.9, 10.0.0.2", "203.0.113.9"),
        (2, "10.0.0.2", "10.0.0.1"),  # it came past the first proxy
        (1, "unknown", "10.0.0.1"),
        (1, "6.6.6.6, " + "x" * 9000, "10.0.0.1"),
        (1, "6.6.6.6,", "10.0.0.1"),
    ],
)
def test_trusted_proxies(hops: int, forwarded: str | None, address: str) -> None:
    """The entry that the first trusted proxy has appended counts, or else the peer's own address."""
    assert see(hops, forwarded)[0] == address


@pytest.mark.parametrize(
    ("peer", "address"), [("::ffff:10.0.0.1", "10.0.0.1"), ("", UNKNOWN), ("/run/x.sock", UNKNOWN)]
)
def test_peers(peer: str, address: str) -> None:
    """A socket for both families and a Unix socket name their peers in their own ways."""
    assert see(0, None, peer)[0] == see(1, "?", peer)[0] == address


@pytest.mark.parametrize(
    ("hops", "proto", "scheme"),
    [(1, "https", "https"), (1, "HTTPS ", "https"), (0, "https", "http"), (1, "javascript", "http"),
     (2, "https", "http"), (2, "https, http", "https"), (1, "https, http", "http")],
)  # fmt: skip
def test_the_scheme(hops: int, proto: str, scheme: str) -> None:
    """It is http or https, as the first trusted proxy says."""
    assert see(hops, None, proto=proto)[1] == scheme
