"""Rows times a matrix of bf16, eight numbers at a time; `multiply` for all kinds.

A number of the result is one chain of additions that depends on its row and column alone: whether three rows of four columns are made
together or one by itself only changes what lies in registers beside it. Matrices lie row after row, and eight lanes of a sum run along
them.

A row by itself is bound by memory: lines are asked for `AHEAD` bytes before they are needed (SmolLM2's head in 8 bits on two Zen 4 cores:
3.3 ms without, 0.95 with). Several rows are bound by arithmetic: twelve sums at a time, three rows of four columns, keep both
multipliers busy, what widens the weights between them.
"""

from __future__ import annotations

from runtime.native import fields as f
from runtime.native.compiled import kernel, part
from runtime.native.machine import field, fma, load, load_bf16, number_bf16, prefetch, put, spread, total
from runtime.native.whole_products import AHEAD, COLUMNS, ask, multiply_int4, multiply_int8


@part
def _ended(sums, bias, column, out):
    found = total(sums)
    if bias:
        found += number_bf16(bias, column)
    put(out, column, found)


@kernel
def _one(x, weight, bias, width, out, column, ahead):
    """`x` [width] to four columns."""
    first = column * width
    second, third, fourth = first + width, first + 2 * width, first + 3 * width
    zero = spread(0.0)
    a, b, c, d = zero, zero, zero, zero
    asked = 2 * first + AHEAD
    for k in range(0, width, 8):
        if ahead:
            prefetch(weight, asked)
            asked += 64
        v = load(x, k)
        a = fma(v, load_bf16(weight, first + k), a)
        b = fma(v, load_bf16(weight, second + k), b)
        c = fma(v, load_bf16(weight, third + k), c)
        d = fma(v, load_bf16(weight, fourth + k), d)
    _ended(a, bias, column, out)
    _ended(b, bias, column + 1, out)
    _ended(c, bias, column + 2, out)
    _ended(d, bias, column + 3, out)


@kernel
def _three(x, weight, bias, width, out, stride, column):
    """Three rows to four columns."""
    first = column * width
    second, third, fourth = first + width, first + 2 * width, first + 3 * width
    y, z = x + 4 * width, x + 8 * width
    zero = spread(0.0)
    ax, bx, cx, dx = zero, zero, zero, zero
    ay, by, cy, dy = zero, zero, zero, zero
    az, bz, cz, dz = zero, zero, zero, zero
    for k in range(0, width, 8):
        u, v, w = load(x, k), load(y, k), load(z, k)
        one = load_bf16(weight, first + k)
        ax, ay, az = fma(u, one, ax), fma(v, one, ay), fma(w, one, az)
        one = load_bf16(weight, second + k)
        bx, by, bz = fma(u, one, bx), fma(v, one, by), fma(w, one, bz)
        one = load_bf16(weight, third + k)
        cx, cy, cz = fma(u, one, cx), fma(v, one, cy), fma(w, one, cz)
        one = load_bf16(weight, fourth + k)
        dx, dy, dz = fma(u, one, dx), fma(v, one, dy), fma(w, one, dz)
    _ended(ax, bias, column, out)
    _ended(bx, bias, column + 1, out)
    _ended(cx, bias, column + 2, out)
    _ended(dx, bias, column + 3, out)
    out += 4 * stride
    _ended(ay, bias, column, out)
    _ended(by, bias, column + 1, out)
    _ended(cy, bias, column + 2, out)
    _ended(dy, bias, column + 3, out)
    out += 4 * stride
    _ended(az, bias, column, out)
    _ended(bz, bias, column + 1, out)
    _ended(cz, bias, column + 2, out)
    _ended(dz, bias, column + 3, out)


@kernel
def _multiply_bf16(x, rows, matrix, out, stride, begin, end):
    weight, bias, width = field(matrix, f.WEIGHT), field(matrix, f.BIAS), field(matrix, f.WIDTH)
    for first in range(begin, end, COLUMNS):
        last = min(end, first + COLUMNS)
        if rows > 1:
            ask(weight, 2 * last * width, 2 * COLUMNS * width)
        row = 0
        while row + 3 <= rows:
            for column in range(first, last, 4):
                _three(x + 4 * row * width, weight, bias, width, out + 4 * row * stride, stride, column)
            row += 3
        while row < rows:
            for column in range(first, last, 4):
                _one(x + 4 * row * width, weight, bias, width, out + 4 * row * stride, column, rows == 1)
            row += 1


@kernel
def multiply(x, rows, matrix, out, stride, begin, end):
    """Columns [begin, end) of `x` [rows, width] times the matrix, plus its bias: `out` [rows, stride] in fp32.

    `x` is fp32, of matrices of whole numbers rows as `shorten` lays them out. Columns come in fours, of int4 in whole blocks.
    """
    kind = field(matrix, f.KIND)
    if kind == f.BF16:
        _multiply_bf16(x, rows, matrix, out, stride, begin, end)
    elif kind == f.INT8:
        multiply_int8(x, rows, matrix, out, stride, begin, end)
    else:
        multiply_int4(x, rows, matrix, out, stride, begin, end)
