"""Several step frames as one: what goes in comes out, and what doesn't add up is refused before anything is handed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.bundles import AROUND, EACH, bundle, is_bundle, unbundle
from protocol.errors import BadInput
from protocol.framing import pack
from protocol.messages import StepHead, TokenLogprob, parse_step, step_frame
from tests.protocol import vector_cases as cases

frames = st.lists(st.binary(min_size=2, max_size=40).filter(lambda frame: frame[:2] != b"\0\0"), min_size=1, max_size=9)


@given(frames)
def test_what_goes_in_comes_out(given_frames: list[bytes]) -> None:
    made = bundle(given_frames)
    assert is_bundle(made) == (len(given_frames) > 1)
    assert [bytes(frame) for frame in unbundle(made)] == given_frames
    if len(given_frames) > 1:
        assert len(made) == AROUND + sum(EACH + len(frame) for frame in given_frames)


@given(frames.filter(lambda many: len(many) > 1), st.data())
def test_a_bundle_cut_anywhere_is_refused_or_whole_frames_before_the_cut(given_frames: list[bytes], data: st.DataObject) -> None:
    made = bundle(given_frames)
    cut = made[: data.draw(st.integers(AROUND, len(made) - 1))]
    try:
        found = [bytes(frame) for frame in unbundle(cut)]
    except BadInput:
        return
    assert found == given_frames[: len(found)]


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_or_taken_within_themselves(noise: bytes) -> None:
    try:
        found = unbundle(b"\0\0" + noise)
    except BadInput:
        return
    assert found
    assert sum(map(len, found)) + EACH * len(found) == len(noise)


def test_none_too_many_and_a_bundle_within_are_refused() -> None:
    one = step_frame(cases.CUT, b"")
    most = bundle([one] * limits.MAX_BUNDLE)
    assert len(unbundle(most)) == limits.MAX_BUNDLE
    for wrong, why in (
        (b"\0\0", "no step frame"),
        (bundle([one] * (limits.MAX_BUNDLE + 1)), f"over {limits.MAX_BUNDLE}"),
        (bundle([one, bundle([one, one])]), "within"),
        (most + b"\0", "over"),
        (most[:-1], "cut off"),
    ):
        with pytest.raises(BadInput, match=why):
            unbundle(wrong)


heads = st.builds(
    StepHead,
    session=st.binary(min_size=16, max_size=16),
    epoch=st.integers(0, (1 << 31) - 1),
    position=st.integers(0, (1 << 31) - 1),
    kind=st.just("token"),
    finish=st.none() | st.sampled_from(["stop", "length"]),
    stage=st.none() | st.integers(0, 4_096),
    more=st.booleans(),
    logprobs=st.none() | st.lists(st.builds(TokenLogprob, st.integers(0, 1 << 20), st.floats(-99, 0)), max_size=3),
    guessed=st.integers(0, limits.MAX_DRAFTED),
)


@given(heads)
def test_heads_have_the_bytes_that_every_record_has_and_come_back(head: StepHead) -> None:
    frame, packed = step_frame(head, bytes(4)), pack(head)
    assert frame == len(packed).to_bytes(2, "big") + packed + bytes(4)
    assert parse_step(frame)[0] == head


def test_a_head_in_other_bytes_is_still_looked_at() -> None:
    """Unknown fields are ignored, critical ones and repeated ones refuse: also where the fast way could read the rest."""
    packed = pack(cases.CUT)

    def framed(more: bytes, fields: int = 1) -> bytes:
        head = bytes([packed[0] + fields]) + packed[1:] + more
        return len(head).to_bytes(2, "big") + head

    assert parse_step(framed(pack("later") + pack(7)))[0] == cases.CUT
    for wrong in (pack("!later") + pack(7), pack("kind") + pack("cut"), pack(3) + pack(7)):
        with pytest.raises(BadInput):
            parse_step(framed(wrong))
