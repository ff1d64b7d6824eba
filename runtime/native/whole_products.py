"""Rows in 16 bits (`shorten.py`) times matrices of 8 and 4 bits.

int8 lies row after row of the matrix, a scale for each. int4 lies as torch's packed kernel wants it (`runtime/int4_order.py`), column after
column of blocks of rows, and each lane is a sum of its own; its whole numbers are added up over a group, exactly, before the group's scale
and zero, which are bf16.
"""

from __future__ import annotations

from runtime.native import fields as f
from runtime.native.compiled import kernel, part
from runtime.native.machine import (
    add,
    add_products,
    as_numbers,
    field,
    fma,
    high_first,
    high_last,
    load,
    load_bf16,
    load_bytes,
    load_first,
    load_pair,
    load_second,
    load_shorts,
    low_first,
    low_last,
    mul,
    no_wholes,
    number,
    number_bf16,
    prefetch,
    put,
    spread,
    store,
    sub,
    total,
)
from runtime.native.shorten import GROUP, numbers_at, shortened_bytes, sums_at

AHEAD = 3_072
"""Bytes by which a row by itself asks for weights before it needs them."""
COLUMNS = 16
"""Of several rows that are made together: a whole line of each row of the result. With fewer each line is fetched anew, and rows that are a
multiple of 4 KiB apart drive each other out of the cache."""


@kernel
def ask(weight, begin, count):
    """For so many bytes, which come while others are used."""
    for at in range(begin, begin + count, 64):
        prefetch(weight, at)


@part
def _ended(sums, row, matrix, column, out):
    found = total(as_numbers(sums)) * number(field(matrix, f.SCALES), column) * number(row, 0)
    if field(matrix, f.BIAS):
        found += number_bf16(field(matrix, f.BIAS), column)
    put(out, column, found)


@kernel
def _int8_one(row, matrix, width, out, column, ahead):
    weight, x = field(matrix, f.WEIGHT), numbers_at(row, width)
    first = column * width
    second, third, fourth = first + width, first + 2 * width, first + 3 * width
    zero = no_wholes()
    a, b, c, d = zero, zero, zero, zero
    asked = first + AHEAD
    for k in range(0, width, 16):
        if ahead:
            prefetch(weight, asked)
            asked += 64
        v = load_shorts(x, k)
        a = add_products(a, v, load_bytes(weight, first + k))
        b = add_products(b, v, load_bytes(weight, second + k))
        c = add_products(c, v, load_bytes(weight, third + k))
        d = add_products(d, v, load_bytes(weight, fourth + k))
    _ended(a, row, matrix, column, out)
    _ended(b, row, matrix, column + 1, out)
    _ended(c, row, matrix, column + 2, out)
    _ended(d, row, matrix, column + 3, out)


@kernel
def _int8_two(row, each, matrix, width, out, stride, column):
    """Two rows to four columns: with three, what is added up no longer fits the registers (SmolLM2, 48 rows, one Zen 4 core: 34 products a
    nanosecond in place of 39)."""
    weight = field(matrix, f.WEIGHT)
    first = column * width
    second, third, fourth = first + width, first + 2 * width, first + 3 * width
    x = numbers_at(row, width)
    y = x + each
    zero = no_wholes()
    ax, bx, cx, dx = zero, zero, zero, zero
    ay, by, cy, dy = zero, zero, zero, zero
    for k in range(0, width, 16):
        u, v = load_shorts(x, k), load_shorts(y, k)
        one = load_bytes(weight, first + k)
        ax, ay = add_products(ax, u, one), add_products(ay, v, one)
        one = load_bytes(weight, second + k)
        bx, by = add_products(bx, u, one), add_products(by, v, one)
        one = load_bytes(weight, third + k)
        cx, cy = add_products(cx, u, one), add_products(cy, v, one)
        one = load_bytes(weight, fourth + k)
        dx, dy = add_products(dx, u, one), add_products(dy, v, one)
    _ended(ax, row, matrix, column, out)
    _ended(bx, row, matrix, column + 1, out)
    _ended(cx, row, matrix, column + 2, out)
    _ended(dx, row, matrix, column + 3, out)
    row, out = row + each, out + 4 * stride
    _ended(ay, row, matrix, column, out)
    _ended(by, row, matrix, column + 1, out)
    _ended(cy, row, matrix, column + 2, out)
    _ended(dy, row, matrix, column + 3, out)


@kernel
def multiply_int8(x, rows, matrix, out, stride, begin, end):
    width = field(matrix, f.WIDTH)
    each = shortened_bytes(width)
    for first in range(begin, end, COLUMNS):
        last = min(end, first + COLUMNS)
        if rows > 1:
            ask(field(matrix, f.WEIGHT), last * width, COLUMNS * width)
        row = 0
        while row + 2 <= rows:
            for column in range(first, last, 4):
                _int8_two(x + row * each, each, matrix, width, out + 4 * row * stride, stride, column)
            row += 2
        while row < rows:
            for column in range(first, last, 4):
                _int8_one(x + row * each, matrix, width, out + 4 * row * stride, column, rows == 1)
            row += 1


@part
def _with_group(before, scales, at, sums, inputs):
    """A group's whole numbers times its scale, and the sum of what they were multiplied by times its zero, added to eight columns."""
    scale = load_first(scales, at)
    zero = sub(load_second(scales, at), mul(scale, spread(8.0)))
    return fma(zero, inputs, fma(scale, as_numbers(sums), before))


@part
def _group(matrix, group, column, sums, inputs, out):
    """The same where other rows are made beside."""
    before = load(out, column) if group else spread(0.0)
    store(out, column, _with_group(before, field(matrix, f.SCALES), group * field(matrix, f.ROWS) + column, sums, inputs))


@kernel
def _int4_one(row, matrix, width, out, base, each, low, high):
    """A row to 32 columns, which lie from byte `base` on, `each` bytes from one number of the row to the next: 16 from `low` on in the
    lower halves, 16 from `high` on in the higher ones."""
    weight, x, sums = field(matrix, f.WEIGHT), numbers_at(row, width), sums_at(row)
    scales, rows = field(matrix, f.SCALES), field(matrix, f.ROWS)
    zero, none = no_wholes(), spread(0.0)
    one, two, three, four = none, none, none, none
    for group in range(width // GROUP):
        a, b, c, d = zero, zero, zero, zero
        for k in range(group * GROUP, group * GROUP + GROUP, 4):
            at = base + k * each
            then = at + 2 * each
            prefetch(weight, at + AHEAD)
            v, w = load_pair(x, k), load_pair(x, k + 2)
            a = add_products(a, v, low_first(weight, at, at + each))
            b = add_products(b, v, low_last(weight, at, at + each))
            c = add_products(c, v, high_first(weight, at, at + each))
            d = add_products(d, v, high_last(weight, at, at + each))
            a = add_products(a, w, low_first(weight, then, then + each))
            b = add_products(b, w, low_last(weight, then, then + each))
            c = add_products(c, w, high_first(weight, then, then + each))
            d = add_products(d, w, high_last(weight, then, then + each))
        inputs, place = spread(number(sums, group)), group * rows
        one = _with_group(one, scales, place + low, a, inputs)
        two = _with_group(two, scales, place + low + 8, b, inputs)
        three = _with_group(three, scales, place + high, c, inputs)
        four = _with_group(four, scales, place + high + 8, d, inputs)
    store(out, low, one)
    store(out, low + 8, two)
    store(out, high, three)
    store(out, high + 8, four)


@kernel
def _int4_three(row, step, matrix, width, out, stride, base, each, low, high, asks):
    weight, x = field(matrix, f.WEIGHT), numbers_at(row, width)
    y, z = x + step, x + 2 * step
    other, last = out + 4 * stride, out + 8 * stride
    zero = no_wholes()
    for group in range(width // GROUP):
        one = spread(number(sums_at(row), group))
        two = spread(number(sums_at(row + step), group))
        three = spread(number(sums_at(row + 2 * step), group))
        for half in range(2):
            ax, bx, ay, by, az, bz = zero, zero, zero, zero, zero, zero
            column = high if half else low
            for k in range(group * GROUP, group * GROUP + GROUP, 2):
                at = base + k * each
                if asks:
                    prefetch(weight, at + AHEAD)
                if half:
                    a, b = high_first(weight, at, at + each), high_last(weight, at, at + each)
                else:
                    a, b = low_first(weight, at, at + each), low_last(weight, at, at + each)
                v = load_pair(x, k)
                ax, bx = add_products(ax, v, a), add_products(bx, v, b)
                v = load_pair(y, k)
                ay, by = add_products(ay, v, a), add_products(by, v, b)
                v = load_pair(z, k)
                az, bz = add_products(az, v, a), add_products(bz, v, b)
            _group(matrix, group, column, ax, one, out)
            _group(matrix, group, column + 8, bx, one, out)
            _group(matrix, group, column, ay, two, other)
            _group(matrix, group, column + 8, by, two, other)
            _group(matrix, group, column, az, three, last)
            _group(matrix, group, column + 8, bz, three, last)


@kernel
def _finished(row, matrix, out, begin):
    """Sixteen columns times the row's scale, plus their bias."""
    scale, bias = spread(number(row, 0)), field(matrix, f.BIAS)
    for column in range(begin, begin + 16, 8):
        found = mul(load(out, column), scale)
        store(out, column, add(found, load_bf16(bias, column)) if bias else found)


@kernel
def multiply_int4(x, rows, matrix, out, stride, begin, end):
    width, block = field(matrix, f.WIDTH), field(matrix, f.KIND) - f.INT4
    step, each = shortened_bytes(width), block // 2
    for number_of in range((end - begin) // block):
        first = begin + number_of * block
        for inner in range(0, each, 16):
            base, low, high = first // 2 * width + inner, first + inner, first + each + inner
            row = 0
            while row + 3 <= rows:
                _int4_three(x + row * step, step, matrix, width, out + 4 * row * stride, stride, base, each, low, high, row == 0)
                row += 3
            while row < rows:
                _int4_one(x + row * step, matrix, width, out + 4 * row * stride, base, each, low, high)
                row += 1
            for row in range(rows):
                _finished(x + row * step, matrix, out + 4 * row * stride, low)
                _finished(x + row * step, matrix, out + 4 * row * stride, high)
