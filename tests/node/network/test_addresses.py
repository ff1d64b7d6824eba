from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.network.addresses import address_from_bytes, address_to_bytes, check_address, expand_listen, links_of, parse_address
from protocol.errors import BadInput

LAN = [ipaddress.ip_network("192.168.1.0/24")]


@given(st.ip_addresses(), st.integers(0, 65_535))
def test_a_good_address_survives_text_and_bytes(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    text = f"/ip{ip.version}/{ip}/tcp/{port}"
    assert parse_address(text) == (str(ip), port)
    assert parse_address(address_from_bytes(address_to_bytes(text))) == (str(ip), port)


@given(st.text(max_size=60))
def test_nonsense_is_bad_input_never_another_fault(text: str) -> None:
    try:
        parse_address(text)
    except BadInput:
        assert not check_address(text, LAN)


@given(st.binary(max_size=300))
def test_hostile_bytes_are_bad_input_never_another_fault(data: bytes) -> None:
    try:
        parse_address(address_from_bytes(data))
    except BadInput:
        return


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("/ip4/8.8.8.8/tcp/4840", True),
        ("/ip6/2606:4700::1/tcp/4840", True),
        ("/ip4/192.168.1.7/tcp/4840", True),
        ("/ip4/192.168.2.7/tcp/4840", False),
        ("/ip4/127.0.0.1/tcp/4840", False),
        ("/ip4/0.0.0.0/tcp/4840", False),
        ("/ip4/224.0.0.1/tcp/4840", False),
        ("/ip4/8.8.8.8/tcp/0", False),
        ("/dns4/example.org/tcp/4840", False),
    ],
)
def test_only_public_addresses_and_own_links_are_dialled(address: str, allowed: bool) -> None:
    assert check_address(address, LAN) is allowed


def test_loopback_counts_when_this_node_listens_there() -> None:
    assert check_address("/ip4/127.0.0.9/tcp/1", links_of(["/ip4/127.0.0.1/tcp/4840"]))
    assert not check_address("/ip4/127.0.0.9/tcp/1", links_of(["/ip4/8.8.8.8/tcp/4840"]))


def test_an_unspecified_address_becomes_those_of_the_interfaces() -> None:
    assert "/ip4/127.0.0.1/tcp/7" in expand_listen(["/ip4/0.0.0.0/tcp/7"])
    assert expand_listen(["/ip4/127.0.0.1/tcp/7"]) == ["/ip4/127.0.0.1/tcp/7"]
