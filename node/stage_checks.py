"""What of an opening and of rows can be checked before anything is done with them. Pure."""

from __future__ import annotations

from itertools import pairwise

from protocol import limits
from protocol.errors import BadInput
from protocol.ids import PeerId
from protocol.messages import OpenSession, StageSpec
from runtime.memory import TRAVELS

MAX_WAIT = 3_600.0
"""Seconds that an opening may ask to wait in a stage's line."""
WIDTH = {"bf16": 2, "fp16": 2, "fp32": 4}


def check_route(request: OpenSession, me: PeerId) -> StageSpec:
    """The own stage, if the route makes sense: contiguous, this node at `index`, counts within limits."""
    stages = request.stages
    if len(request.session) != 16 or not 1 <= len(stages) <= limits.MAX_LAYERS or not 0 <= request.index < len(stages):
        raise BadInput("session: id of 16 bytes, 1 to 4096 stages, index among them")
    if stages[0].first != 0 or any(after.first != before.end for before, after in pairwise(stages)):
        raise BadInput("session: the stages' layers aren't contiguous from 0")
    if any(stage.end <= stage.first for stage in stages) or stages[request.index].peer != me:
        raise BadInput("session: an empty stage, or a stage number that isn't this node's")
    if not 0 < request.tokens_max <= 1 << 22 or not 0 < request.new_max <= request.tokens_max or len(request.stop_tokens) > 64:
        raise BadInput("session: tokens_max, new_max or stop_tokens out of range")
    if not 0 <= request.resume <= request.tokens_max or not 0 <= request.epoch < 1 << 31:
        raise BadInput("session: resume or epoch out of range")
    if request.score is not None and not 0 < len(request.score) <= request.tokens_max:
        raise BadInput(f"session: {len(request.score)} tokens to score in {request.tokens_max} positions")
    _check_after(request)
    if not 0.0 <= request.wait <= MAX_WAIT:
        raise BadInput(f"session: a wait of {request.wait} s, 0 to {MAX_WAIT:.0f} can be asked")
    if request.precision not in TRAVELS:
        raise BadInput(f"session: precision {request.precision[:16]!r}, {', '.join(TRAVELS)} are known")
    return stages[request.index]


def _check_after(request: OpenSession) -> None:
    after, known = request.after, request.known
    if after is not None and (len(after.session) != 16 or not 0 < after.positions < request.tokens_max):
        raise BadInput(f"session: goes on from {after.positions} positions of another, 1 to {request.tokens_max - 1} can be")
    if known is not None and (after is None or len(known) != after.positions or not all(0 <= token < 1 << 31 for token in known)):
        raise BadInput(f"session: {len(known)} tokens known, one for each position that is there already is right")
