"""Allow and deny lists: what a line may be, whom it means, and that it is there again after a restart."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.accounts.caller import Caller
from node.accounts.caller_entry import address_of, network_of, parse_entry
from node.accounts.caller_rules import FILE, MOST, CallerRules
from node.config import load_config
from protocol.errors import BadInput, Conflict, Forbidden, NotFound

HOME = "12D3KooW" + "A" * 44
ANN, BOB = bytes([1]) * 32, bytes([2]) * 32


def caller(account: bytes | None = None, subject: str = "address:x", home: str | None = None) -> Caller:
    return Caller("key", frozenset(), subject, "free", account=account, home=home, name=None if account is None else "ann@abcdefgh")


OPEN, OWNER = caller(), caller(subject="owner")


def let_in(rules: CallerRules, who: Caller | None, address: str = "192.0.2.7", *, free: bool = False) -> bool:
    try:
        rules.check(who, address, free=free)
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize(
    ("given", "kept"),
    [("192.0.2.7", "192.0.2.7"), ("192.0.2.7/24", "192.0.2.0/24"), ("[2001:db8::1]", "2001:db8::1"), ("2001:DB8::/32", "2001:db8::/32"),
     ("::ffff:10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
     ("AB" * 32, "ab" * 32), (HOME, HOME)],
)  # fmt: skip
def test_lines_are_kept_in_one_form(given: str, kept: str) -> None:
    assert parse_entry(given) == kept == parse_entry(kept)


@pytest.mark.parametrize("given", ["", "ann", "ann@abcdefgh", "10.0.0.0/33", "1.2.3", "ab" * 31, "12D3KooW0", "*", "9" * 10_000, "\x00"])
def test_what_is_no_caller_is_refused(given: str) -> None:
    with pytest.raises(BadInput, match="is no caller"):
        parse_entry(given)


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 32))
def test_a_network_means_its_addresses_and_no_others(place: object, other: object, bits: int) -> None:
    network = network_of(f"{place}/{bits}")
    assert network is not None
    rules = CallerRules(deny=[parse_entry(str(network))])
    for one in (place, other):
        meant = address_of(str(one))
        inside = meant is not None and meant.version == network.version and meant in network
        assert let_in(rules, OPEN, str(one)) is not inside
        assert let_in(rules, None, str(one)) is not inside


def test_deny_comes_first_and_an_allow_list_keeps_the_others_out() -> None:
    rules = CallerRules(allow=["10.0.0.0/8", ANN.hex(), HOME], deny=["10.0.0.9", BOB.hex()])
    assert let_in(rules, OPEN, "10.1.2.3")
    assert let_in(rules, OPEN, "::ffff:10.1.2.3"), "an IPv4 address in IPv6's clothes"
    assert let_in(rules, caller(ANN))
    assert let_in(rules, caller(bytes([3]) * 32, home=HOME))
    assert not let_in(rules, OPEN)
    assert not let_in(rules, caller(bytes([3]) * 32))
    assert not let_in(rules, OPEN, "10.0.0.9")
    assert not let_in(rules, caller(ANN), "10.0.0.9")
    assert not let_in(rules, caller(BOB), "10.1.2.3")
    assert let_in(rules, OWNER, "10.0.0.9"), "who holds the node can't lock himself out"
    assert let_in(rules, OPEN, free=True)
    assert not let_in(rules, OPEN, "10.0.0.9", free=True)


def test_lines_outlive_a_restart_and_those_of_the_configuration_stay_there(tmp_path: Path) -> None:
    rules = CallerRules(tmp_path, deny=["192.0.2.1"])
    rules.load()
    rules.put("10.0.0.0/8", "allow")
    rules.put("10.0.0.9", "allow")
    assert rules.put("10.0.0.9", "deny") == "10.0.0.9"
    again = CallerRules(tmp_path, deny=["192.0.2.1"])
    again.load()
    assert again.lists() == {"allow": ["10.0.0.0/8"], "deny": ["10.0.0.9", "192.0.2.1"]}
    again.drop("10.0.0.9")
    assert let_in(again, OPEN, "10.0.0.9")
    with pytest.raises(NotFound):
        again.drop("10.0.0.9")
    for change in (lambda: again.drop("192.0.2.1"), lambda: again.put("192.0.2.1", "allow")):
        with pytest.raises(Conflict, match="of the configuration"):
            change()
    (tmp_path / FILE).write_bytes(b"\x81")
    with pytest.raises(Conflict, match="can't be read"):
        CallerRules(tmp_path).load()


def test_the_lists_are_bounded() -> None:
    rules = CallerRules()
    rules.kept["deny"] = [str(ipaddress.ip_address(number)) for number in range(MOST)]
    with pytest.raises(BadInput, match="at most"):
        rules.put("192.0.2.1", "deny")


def test_the_configuration_has_both_lists(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('allow = ["10.0.0.1/8"]\n')
    found = load_config(tmp_path, {"deny": ("192.0.2.7",)}, {})
    assert (found.allow, found.deny) == (("10.0.0.0/8",), ("192.0.2.7",))
    assert load_config(tmp_path, {}, {"MF_ALLOW": "192.0.2.7, 192.0.2.8"}).allow == ("192.0.2.7", "192.0.2.8")
    with pytest.raises(BadInput, match="--deny: 'ann' is no caller"):
        load_config(tmp_path, {"deny": ("ann",)}, {})
