"""Signed statements of what a stage computed: read back, and refused one past each bound."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocol import limits
from protocol.errors import BadInput
from protocol.prints import PRINT_BYTES, PRINTS_DOMAIN, Prints, open_prints, seal_prints, token_print
from protocol.signing import seal
from tests.protocol import vector_cases as cases

PRINTS = cases.PRINTS
SIDE = bytes(PRINT_BYTES)


def test_read_back_with_its_signer() -> None:
    assert open_prints(seal_prints(cases.KEY, PRINTS)) == (cases.PEER, PRINTS)


def test_the_largest_statement_fits_its_bound() -> None:
    rows = limits.MAX_PRINT_ROWS
    most = msgspec.structs.replace(PRINTS, count=rows, inputs=SIDE * rows, outputs=SIDE * rows, gaps=[0.1] * rows, given=SIDE * rows)
    assert open_prints(seal_prints(cases.KEY, most))[1] == most


@pytest.mark.parametrize(
    "changes",
    [
        {"session": b"s"},
        {"model": b"m"},
        {"precision": "p" * 17},
        {"first": 3, "end": 3},
        {"first": -1},
        {"end": limits.MAX_LAYERS + 1},
        {"position": 1 << 31},
        {"position": -1},
        {"count": 0, "inputs": b"", "outputs": b""},
        {"count": limits.MAX_PRINT_ROWS + 1, "inputs": SIDE * (limits.MAX_PRINT_ROWS + 1), "outputs": None, "gaps": None},
        {"inputs": SIDE},
        {"outputs": SIDE * 3},
        {"gaps": [0.0]},
        {"given": SIDE},
        {"given": SIDE * 3},
    ],
    ids=str,
)
def test_one_past(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="prints"):
        open_prints(seal_prints(cases.KEY, msgspec.structs.replace(PRINTS, **changes)))


def test_longer_than_a_statement_may_be() -> None:
    with pytest.raises(BadInput):
        open_prints(seal(cases.KEY, PRINTS_DOMAIN, msgspec.structs.replace(PRINTS, precision="p" * limits.MAX_PRINTS)))


def test_a_changed_byte_breaks_the_signature() -> None:
    data = bytearray(seal_prints(cases.KEY, PRINTS))
    data[-70] ^= 1
    with pytest.raises(BadInput):
        open_prints(bytes(data))


def test_a_tokens_print_is_of_its_place_and_key() -> None:
    made = {token_print(key, position, token) for key in (bytes(16), bytes(15) + b"x") for position in (1, 2) for token in (1, 2)}
    assert len(made) == 8
    assert all(len(each) == PRINT_BYTES for each in made)
    assert isinstance(PRINTS, Prints)
