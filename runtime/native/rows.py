"""What is done to a row between the matrices: norms, rotation, the gate, attention over what the slabs hold.

Sums of squares and of attention's weights run in eight lanes from the row's beginning on, so that a row is what it is by itself.
The exponential is a polynomial of this file's (as Cephes has it; within 2e-7 of the right one), not the machine's library's: two machines
give the same bits.
"""

from __future__ import annotations

from runtime.native import fields as f
from runtime.native.compiled import kernel, part
from runtime.native.machine import (
    add,
    div,
    field,
    field_float,
    fma,
    greater,
    greatest,
    lesser,
    load,
    load_bf16,
    mul,
    nearest,
    number,
    power,
    put,
    root,
    spread,
    store,
    store_bf16,
    sub,
    total,
)

_LEAST, _MOST = -87.0, 88.0
_HIDDEN = -1e30


@part
def exponential(x):
    """Of eight numbers; below -87 what it is there."""
    x = greater(lesser(x, spread(_MOST)), spread(_LEAST))
    whole = nearest(mul(x, spread(1.44269504088896341)))
    rest = fma(whole, spread(2.12194440e-4), fma(whole, spread(-0.693359375), x))
    found = fma(spread(1.9875691500e-4), rest, spread(1.3981999507e-3))
    found = fma(found, rest, spread(8.3334519073e-3))
    found = fma(found, rest, spread(4.1665795894e-2))
    found = fma(found, rest, spread(1.6666665459e-1))
    found = fma(found, rest, spread(5.0000001201e-1))
    found = add(fma(found, mul(rest, rest), rest), spread(1.0))
    return mul(found, power(whole))


@part
def _tanh(x):
    return sub(spread(1.0), div(spread(2.0), add(exponential(add(x, x)), spread(1.0))))


@part
def capped(x, cap):
    return mul(_tanh(div(x, spread(cap))), spread(cap))


@part
def _gated(act, gate):
    if act == f.SILU:
        return div(gate, add(spread(1.0), exponential(sub(spread(0.0), gate))))
    inner = mul(fma(mul(mul(gate, gate), gate), spread(0.044715), gate), spread(0.7978845608028654))
    return mul(mul(gate, spread(0.5)), add(spread(1.0), _tanh(inner)))


@kernel
def gate(act, gates, ups, begin, end, out):
    """Numbers [begin, end) of a row: the gate's function times up."""
    for at in range(begin, end, 8):
        store(out, at, mul(_gated(act, load(gates, at)), load(ups, at)))


@kernel
def norm(x, weight, eps, width, out):
    """A row over its root mean square, times `weight`, all fp32."""
    sums = spread(0.0)
    for at in range(0, width, 8):
        sums = fma(load(x, at), load(x, at), sums)
    size = spread(1.0 / root(total(sums) / width + eps))
    for at in range(0, width, 8):
        store(out, at, mul(mul(load(x, at), size), load(weight, at)))


@kernel
def _rotate(x, table, position, rotated):
    half, at = rotated // 2, position * rotated
    cosines, sines = field(table, 0), field(table, 1)
    for one in range(0, half, 8):
        low, high = load(x, one), load(x, half + one)
        store(x, one, fma(low, load(cosines, at + one), mul(high, load(sines, at + one))))
        store(x, half + one, fma(high, load(cosines, at + half + one), mul(low, load(sines, at + half + one))))


@kernel
def place(stage, layer, number_of, rooms, heads, placed):
    """A row of queries, keys and values: turned to its position, keys and values laid into its slab in bf16. `rooms`: tables."""
    width, rotated = field(stage, f.HEAD_DIM), field(stage, f.ROTATED)
    queries, keys = field(stage, f.HEADS), field(stage, f.KV_HEADS)
    weight, table = field(layer, f.HEAD_NORM), rooms + 16 * field(layer, f.TABLE)
    position = field(placed, f.POSITION)
    for head in range(queries + keys):
        mine = heads + 4 * head * width
        if weight:
            norm(mine, weight + 4 * head * width, field_float(stage, f.EPS), width, mine)
        _rotate(mine, table, position, rotated)
    into = field(placed, f.BASE) + number_of * field(placed, f.LAYER_STRIDE)
    for head in range(keys):
        key = heads + 4 * (queries + head) * width
        value = key + 4 * keys * width
        to = into + 2 * width * (head * field(placed, f.ROOM) + position)
        for at in range(0, width, 8):
            store_bf16(to, at, load(key, at))
            store_bf16(to + field(placed, f.VALUES), at, load(value, at))


@kernel
def _scores(q, keys, width, begin, end, scale, out):
    position = begin
    while position + 4 <= end:
        at = position * width
        zero = spread(0.0)
        a, b, c, d = zero, zero, zero, zero
        for k in range(0, width, 8):
            v = load(q, k)
            a = fma(v, load_bf16(keys, at + k), a)
            b = fma(v, load_bf16(keys, at + width + k), b)
            c = fma(v, load_bf16(keys, at + 2 * width + k), c)
            d = fma(v, load_bf16(keys, at + 3 * width + k), d)
        put(out, position - begin, total(a) * scale)
        put(out, position - begin + 1, total(b) * scale)
        put(out, position - begin + 2, total(c) * scale)
        put(out, position - begin + 3, total(d) * scale)
        position += 4
    while position < end:
        a = spread(0.0)
        for k in range(0, width, 8):
            a = fma(load(q, k), load_bf16(keys, position * width + k), a)
        put(out, position - begin, total(a) * scale)
        position += 1


@kernel
def _weighed(scores, count, cap):
    """`scores` to weights that aren't divided yet, zeros to a multiple of eight; their sum."""
    for at in range(count, -(-count // 8) * 8):
        put(scores, at, _HIDDEN)
    most = spread(_HIDDEN)
    for at in range(0, count, 8):
        if cap > 0.0:
            store(scores, at, capped(load(scores, at), cap))
            for beyond in range(count, at + 8):
                put(scores, beyond, _HIDDEN)
        most = greater(most, load(scores, at))
    most = spread(greatest(most))
    sums = spread(0.0)
    for at in range(0, count, 8):
        weights = exponential(sub(load(scores, at), most))
        store(scores, at, weights)
        if at + 8 > count:
            for beyond in range(count, at + 8):
                put(scores, beyond, 0.0)
        sums = add(sums, load(scores, at))
    return total(sums)


@kernel
def _mixed(weights, count, values, width, whole, out):
    """Rows of `values` [count, width], each times its weight over `whole`."""
    share = spread(1.0 / whole)
    lane = 0
    while lane + 64 <= width:
        zero = spread(0.0)
        a, b, c, d, e, g, h, i = zero, zero, zero, zero, zero, zero, zero, zero
        for row in range(count):
            v, at = spread(number(weights, row)), row * width + lane
            a, b = fma(v, load_bf16(values, at), a), fma(v, load_bf16(values, at + 8), b)
            c, d = fma(v, load_bf16(values, at + 16), c), fma(v, load_bf16(values, at + 24), d)
            e, g = fma(v, load_bf16(values, at + 32), e), fma(v, load_bf16(values, at + 40), g)
            h, i = fma(v, load_bf16(values, at + 48), h), fma(v, load_bf16(values, at + 56), i)
        store(out, lane, mul(a, share))
        store(out, lane + 8, mul(b, share))
        store(out, lane + 16, mul(c, share))
        store(out, lane + 24, mul(d, share))
        store(out, lane + 32, mul(e, share))
        store(out, lane + 40, mul(g, share))
        store(out, lane + 48, mul(h, share))
        store(out, lane + 56, mul(i, share))
        lane += 64
    while lane < width:
        a = spread(0.0)
        for row in range(count):
            a = fma(spread(number(weights, row)), load_bf16(values, row * width + lane), a)
        store(out, lane, mul(a, share))
        lane += 8


@kernel
def attend(stage, layer, number_of, head, q, placed, scores, out):
    """One query head of one row over all it sees: `q` and `out` [head_dim]."""
    width = field(stage, f.HEAD_DIM)
    group = field(stage, f.HEADS) // field(stage, f.KV_HEADS)
    end, window = field(placed, f.POSITION) + 1, field(layer, f.WINDOW)
    begin = max(0, end - window) if window else 0
    mine = 2 * width * (head // group) * field(placed, f.ROOM)
    keys = field(placed, f.BASE) + number_of * field(placed, f.LAYER_STRIDE) + mine
    values = keys + field(placed, f.VALUES) + 2 * width * begin
    _scores(q, keys, width, begin, end, field_float(stage, f.SCALE), scores)
    whole = _weighed(scores, end - begin, field_float(stage, f.SOFTCAP))
    _mixed(scores, end - begin, values, width, whole, out)
