from __future__ import annotations

import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.transfer import admission
from node.transfer.admission import ExpectedPut, ExpectedPuts, Grants
from protocol.errors import Busy, Forbidden
from protocol.grants import grant_from_header
from protocol.signing import peer_of
from tests.node.transfer.plane import MODEL, Coded, grant

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CODED = Coded()


class Clock:
    """One hand for both clocks."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def fresh(**fields: object) -> bytes:
    return grant_from_header(grant(SIGNER, CODED, **fields)["MF-Grant"])  # type: ignore[arg-type]


def test_an_opened_grant_outlives_its_minute_but_not_idleness() -> None:
    clock = Clock()
    grants = Grants(peer_of(SIGNER), clock, clock)
    data, late = fresh(), fresh()
    grants.admit(data, "get", CODED.key(0))
    clock.now += 500
    grants.admit(data, "get", CODED.key(1))
    with pytest.raises(Forbidden, match="60 s"):
        grants.admit(late, "get", CODED.key(0))
    clock.now += admission.IDLE + 1
    with pytest.raises(Forbidden, match="idle"):
        grants.admit(data, "get", CODED.key(0))


def test_charges_stop_at_the_limit_and_can_be_given_back() -> None:
    clock = Clock()
    grants = Grants(peer_of(SIGNER), clock, clock)
    opened = grants.admit(fresh(max_bytes=100), "get", CODED.key(0))
    grants.charge(opened, 100)
    with pytest.raises(Forbidden, match="100 bytes"):
        grants.charge(opened, 1)
    grants.refund(opened, 40)
    grants.charge(opened, 40)


def test_open_grants_are_bounded_and_idle_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_OPEN", 2)
    clock = Clock()
    grants = Grants(peer_of(SIGNER), clock, clock)
    for _ in range(2):
        grants.admit(fresh(), "get", CODED.key(0))
    with pytest.raises(Busy):
        grants.admit(fresh(), "get", CODED.key(0))
    clock.now += admission.IDLE + 1
    grants.admit(fresh(issued=int(clock.now)), "get", CODED.key(0))


def test_a_put_is_expected_for_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_EXPECTED", 1)
    clock = Clock()
    puts = ExpectedPuts(clock)
    put = ExpectedPut(CODED.key(0), MODEL, 0, "a peer")
    puts.expect(put)
    assert puts.find(put.key) == put
    with pytest.raises(Busy):
        puts.expect(ExpectedPut(CODED.key(1), MODEL, 0, "a peer"))
    clock.now += admission.IDLE
    with pytest.raises(Forbidden, match="expected"):
        puts.find(put.key)
    puts.expect(ExpectedPut(CODED.key(1), MODEL, 0, "a peer"))
    puts.done(CODED.key(1))
    with pytest.raises(Forbidden):
        puts.find(CODED.key(1))
