"""A pass through a stage, from hidden states to hidden states or logits, read from top to bottom by every thread of the team.

Between layers hidden states are what bf16 holds, as they travel between stages: where a model is cut changes nothing.
"""

from __future__ import annotations

from runtime.native import fields as f
from runtime.native.compiled import kernel
from runtime.native.machine import (
    add,
    as_bf16,
    field,
    field_float,
    load,
    load_bf16,
    pause,
    set_shared,
    shared,
    spread,
    store,
    store_bf16,
    sub,
    total,
)
from runtime.native.products import multiply
from runtime.native.rows import attend, capped, gate, norm, place
from runtime.native.shorten import GROUP, shorten, shortened_bytes
from runtime.native.team import NONE, begin, end, entered, leave, open_phase, over, sleep, take

_PIECES = 64
"""Of a matrix for each thread, at most."""
_LOOKS = 2_000
"""At the ring before a helper sleeps."""


@kernel
def _unit(matrix):
    """Columns that can't be parted."""
    return max(GROUP, field(matrix, f.KIND) - f.INT4)


@kernel
def _is_short(matrix):
    """Whether it takes rows in whole numbers."""
    return field(matrix, f.KIND) != f.BF16


@kernel
def _input(given, matrix, room):
    return field(given, f.SHORT) if _is_short(matrix) else field(given, room)


@kernel
def _shorten_row(given, row, source, width):
    shorten(source + 4 * row * width, width, field(given, f.SHORT) + row * shortened_bytes(width))


@kernel
def _norm_after(stage, given, row, weight, matrix):
    """A row of the hidden states to what the next matrix takes."""
    width, out = field(stage, f.HIDDEN), field(given, f.NORMED)
    if weight:
        norm(field(given, f.X) + 4 * row * width, weight, field_float(stage, f.EPS), width, out + 4 * row * width)
        if _is_short(matrix):
            _shorten_row(given, row, out, width)


@kernel
def _enter(stage, given, thread, phase):
    width, x, rows, count = field(stage, f.HIDDEN), field(given, f.X), field(given, f.COUNT), 0
    layer = stage + 8 * f.STAGE_FIELDS
    row = take(given, thread, phase, rows)
    while row != NONE:
        for at in range(row * width, (row + 1) * width, 8):
            store(x, at, load_bf16(field(given, f.GIVEN), at))
        _norm_after(stage, given, row, field(layer, f.BEFORE_ATTENTION), layer + 8 * f.QKV)
        count += 1
        row = take(given, thread, phase, rows)
    return over(given, thread, phase, rows, count)


@kernel
def _shorten(given, thread, phase, matrix, room):
    """What several threads made of each row, for a matrix that takes it short."""
    if not _is_short(matrix):
        return phase
    rows, count = field(given, f.COUNT), 0
    row = take(given, thread, phase, rows)
    while row != NONE:
        _shorten_row(given, row, field(given, room), field(matrix, f.WIDTH))
        count += 1
        row = take(given, thread, phase, rows)
    return over(given, thread, phase, rows, count)


@kernel
def _multiply(given, thread, phase, matrix, room, out):
    """Each row of a room times the matrix, into another."""
    columns, rows, count = field(matrix, f.ROWS), field(given, f.COUNT), 0
    unit, x = _unit(matrix), _input(given, matrix, room)
    each = unit * max(1, columns // (unit * _PIECES * field(thread, f.THREADS)))
    pieces = -(-columns // each)
    piece = take(given, thread, phase, pieces)
    while piece != NONE:
        multiply(x, rows, matrix, field(given, out), columns, piece * each, min(columns, (piece + 1) * each))
        count += 1
        piece = take(given, thread, phase, pieces)
    return over(given, thread, phase, pieces, count)


@kernel
def _place(stage, given, thread, phase, layer, number):
    wide = 4 * field(stage, f.HEAD_DIM) * (field(stage, f.HEADS) + 2 * field(stage, f.KV_HEADS))
    rows, tables, count = field(given, f.COUNT), given + 8 * f.TABLES, 0
    row = take(given, thread, phase, rows)
    while row != NONE:
        placed = field(given, f.PLACES) + 8 * f.PLACE_FIELDS * row
        place(stage, layer, number, tables, field(given, f.HEADS_ROOM) + row * wide, placed)
        count += 1
        row = take(given, thread, phase, rows)
    return over(given, thread, phase, rows, count)


@kernel
def _attend(stage, given, thread, phase, layer, number):
    heads, width = field(stage, f.HEADS), 4 * field(stage, f.HEAD_DIM)
    wide = width * (heads + 2 * field(stage, f.KV_HEADS))
    pieces, count = field(given, f.COUNT) * heads, 0
    scores = field(given, f.SCORES) + 4 * field(thread, f.NUMBER) * field(given, f.SCORES_EACH)
    piece = take(given, thread, phase, pieces)
    while piece != NONE:
        row, head = piece // heads, piece % heads
        q = field(given, f.HEADS_ROOM) + row * wide + head * width
        placed = field(given, f.PLACES) + 8 * f.PLACE_FIELDS * row
        attend(stage, layer, number, head, q, placed, scores, field(given, f.ATTENDED) + piece * width)
        count += 1
        piece = take(given, thread, phase, pieces)
    return over(given, thread, phase, pieces, count)


@kernel
def _add(stage, given, thread, phase, weight, rounds, following, matrix):
    """What half a layer made goes to the hidden states, by a norm of its own where it has one; then the norm that follows."""
    width, x, added, count = field(stage, f.HIDDEN), field(given, f.X), field(given, f.ADDED), 0
    rows = field(given, f.COUNT)
    row = take(given, thread, phase, rows)
    while row != NONE:
        if weight:
            norm(added + 4 * row * width, weight, field_float(stage, f.EPS), width, added + 4 * row * width)
        for at in range(row * width, (row + 1) * width, 8):
            found = add(load(x, at), load(added, at))
            store(x, at, as_bf16(found) if rounds else found)
        _norm_after(stage, given, row, following, matrix)
        count += 1
        row = take(given, thread, phase, rows)
    return over(given, thread, phase, rows, count)


@kernel
def _gate(stage, given, thread, phase, layer):
    """Gate and up, and the gate's function of both; a piece is the same columns of either."""
    matrix, rows = layer + 8 * f.GATE_UP, field(given, f.COUNT)
    inner, act, count = field(stage, f.INNER), field(stage, f.ACT), 0
    x, room, out = _input(given, matrix, f.NORMED), field(given, f.INNER_ROOM), field(given, f.GATED)
    unit = _unit(matrix)
    pieces = -(-inner // unit)
    piece = take(given, thread, phase, pieces)
    while piece != NONE:
        first, last = piece * unit, min(inner, (piece + 1) * unit)
        multiply(x, rows, matrix, room, 2 * inner, first, last)
        multiply(x, rows, matrix, room, 2 * inner, inner + first, inner + last)
        for row in range(rows):
            mine = room + 8 * row * inner
            gate(act, mine, mine + 4 * inner, first, last, out + 4 * row * inner)
        count += 1
        piece = take(given, thread, phase, pieces)
    return over(given, thread, phase, pieces, count)


@kernel
def _layer(stage, given, thread, phase, number):
    layer = stage + 8 * (f.STAGE_FIELDS + f.LAYER_FIELDS * number)
    after = layer + 8 * f.LAYER_FIELDS
    following = field(after, f.BEFORE_ATTENTION) if number + 1 < field(stage, f.LAYERS) else 0
    out, gate_up, down = layer + 8 * f.OUT, layer + 8 * f.GATE_UP, layer + 8 * f.DOWN
    phase = _multiply(given, thread, phase, layer + 8 * f.QKV, f.NORMED, f.HEADS_ROOM)
    phase = _place(stage, given, thread, phase, layer, number)
    phase = _attend(stage, given, thread, phase, layer, number)
    phase = _shorten(given, thread, phase, out, f.ATTENDED)
    phase = _multiply(given, thread, phase, out, f.ATTENDED, f.ADDED)
    phase = _add(stage, given, thread, phase, field(layer, f.AFTER_ATTENTION), False, field(layer, f.BEFORE_MLP), gate_up)
    phase = _gate(stage, given, thread, phase, layer)
    phase = _shorten(given, thread, phase, down, f.GATED)
    phase = _multiply(given, thread, phase, down, f.GATED, f.ADDED)
    return _add(stage, given, thread, phase, field(layer, f.AFTER_MLP), True, following, after + 8 * f.QKV)


@kernel
def _leave(stage, given, thread, phase):
    """The rows that somebody wants: as they go on to the next stage, or ready for the head."""
    width, x, wanted, count = field(stage, f.HIDDEN), field(given, f.X), field(given, f.WANTED_COUNT), 0
    piece = take(given, thread, phase, wanted)
    while piece != NONE:
        source = x + 4 * field(field(given, f.WANTED), piece) * width
        if field(stage, f.NORM):
            norm(source, field(stage, f.NORM), field_float(stage, f.EPS), width, field(given, f.ADDED) + 4 * piece * width)
            if _is_short(stage + 8 * f.HEAD):
                _shorten_row(given, piece, field(given, f.ADDED), width)
        else:
            wrong = spread(0.0)
            for at in range(0, width, 8):
                v = as_bf16(load(source, at))
                wrong = add(wrong, sub(v, v))
                store_bf16(field(given, f.RESULT), piece * width + at, v)
            if total(wrong) != 0.0:
                set_shared(given, f.WRONG, 1)
        count += 1
        piece = take(given, thread, phase, wanted)
    return over(given, thread, phase, wanted, count)


@kernel
def _logits(stage, given, thread, phase):
    matrix, wanted, cap, count = stage + 8 * f.HEAD, field(given, f.WANTED_COUNT), field_float(stage, f.LOGIT_CAP), 0
    columns, out, unit = field(matrix, f.ROWS), field(given, f.RESULT), _unit(matrix)
    each = unit * max(1, columns // (unit * _PIECES * field(thread, f.THREADS)))
    pieces = -(-columns // each)
    piece = take(given, thread, phase, pieces)
    while piece != NONE:
        first, last = piece * each, min(columns, (piece + 1) * each)
        multiply(_input(given, matrix, f.ADDED), wanted, matrix, out, columns, first, last)
        if cap > 0.0:
            for row in range(wanted):
                for at in range(row * columns + first, row * columns + last, 8):
                    store(out, at, capped(load(out, at), cap))
        count += 1
        piece = take(given, thread, phase, pieces)
    return over(given, thread, phase, pieces, count)


@kernel
def _run(given, thread):
    stage = field(given, f.STAGE)
    phase = _enter(stage, given, thread, 0)
    for number in range(field(stage, f.LAYERS)):
        phase = _layer(stage, given, thread, phase, number)
    if field(given, f.WANTED_COUNT):
        phase = _leave(stage, given, thread, phase)
        if field(stage, f.NORM):
            _logits(stage, given, thread, phase)


@kernel
def lead(thread, given):
    """A pass, with whoever helps; it is done when this returns."""
    begin(thread, given)
    _run(given, thread)
    end(given)
    return 0


@kernel
def lead_alone(thread, given):
    """A pass that nobody may help with."""
    open_phase(field(given, f.COMMON), 1, 0)
    _run(given, thread)
    return 0


@kernel
def help_out(thread, _unused):
    """Helps with every pass until it is told to stop."""
    looks = 0
    while not shared(thread, f.STOP):
        given = entered(thread)
        if given:
            _run(given, thread)
            leave(field(given, f.COMMON))
            looks = 0
        elif looks < _LOOKS:
            looks += 1
            pause()
        else:
            sleep(thread)
            looks = 0
    return 0


@kernel
def run(thread, given):
    """What is called from outside: a pass, or (`given` nought) a helper's life."""
    if not given:
        return help_out(thread, given)
    return lead(thread, given) if field(thread, f.THREADS) > 1 else lead_alone(thread, given)
