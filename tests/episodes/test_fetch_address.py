"""What an address and a URL must be to pass the fetcher's wall, for any address and any text."""

from ipaddress import ip_address

import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from semantica.episodes.fetch.address import check_url, is_public
from semantica.episodes.quarantine import Refused

PUBLIC = "93.184.215.14"


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_public_in_every_dress_or_in_none(address):
    assert is_public(ip_address(f"64:ff9b::{address}"), 80) == is_public(address, 80)
    assert not is_public(ip_address(f"::ffff:{address}"), 80)
    assert not is_public(ip_address(f"::{address}"), 80)
    assert not is_public(ip_address((0x2002 << 112) | (int(address) << 80) | 1), 80)


@given(st.ip_addresses())
def test_nothing_is_public_that_python_calls_private(address):
    nat64 = address.version == 6 and int(address) >> 32 == 0x64FF9B << 64
    if is_public(address, 80) and not nat64:
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://", "http://a.example/", "http://a.example:", "http://["]))
def test_any_text_is_a_url_with_a_public_host_or_refused(text, start):
    try:
        url = check_url(start + text, (80, 443))
    except Refused:
        return
    assert url.scheme in ("http", "https")
    assert url.port in (80, 443)
    assert url == check_url(url, (80, 443)) == check_url(str(url), (80, 443))  # what was checked is what will be requested
    assert url == yarl.URL(str(url))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", PUBLIC, "2606:4700::1111", "64:ff9b::8.8.8.8", "172.15.0.1", "100.128.0.1"]
)
def test_public_addresses_are_public(address):
    assert is_public(ip_address(address), 443)


@pytest.mark.parametrize(
    ("url", "requested"),
    [
        ("HTTP://Pictures.Example./a b.png#top", "http://pictures.example/a%20b.png"),
        ("https://bücher.example:443/ä?q=ü", "https://xn--bcher-kva.example/%C3%A4?q=%C3%BC"),
        ("http://8.8.8.8/a", "http://8.8.8.8/a"),
        ("http://[2606:4700::1111]/a", "http://[2606:4700::1111]/a"),
    ],
)
def test_ordinary_urls_pass_the_wall(url, requested):
    assert str(check_url(url, (80, 443))) == requested
