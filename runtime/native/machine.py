"""What numba doesn't have: eight numbers at once, memory by its address, counters that threads share.

Numba's own loops are made fast by LLVM as it sees fit, which then adds up in another order for one row than for four; here each addition
is said. Nothing is reordered afterwards, and `fma` rounds once, so that every processor that has it gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 8
_FLOAT, _BYTE, _SHORT, _INT, _LONG = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_BYTES, _SHORTS = ir.VectorType(_BYTE, 2 * LANES), ir.VectorType(_SHORT, 2 * LANES)


def _register(called: str, kind: Any) -> Any:
    """A type of numba's for what lies in a register."""
    made: Any = type(called, (types.Type,), {})
    model = type(
        f"{called}Model", (models.PrimitiveModel,), {"__init__": lambda self, m, t: models.PrimitiveModel.__init__(self, m, t, kind)}
    )
    register_model(made)(model)
    return made(name=called)


vector = _register("Vector", _FLOATS)
"""Eight numbers of fp32."""
wholes = _register("Wholes", _INTS)
"""Eight whole numbers of 32 bits."""
shorts = _register("Shorts", _SHORTS)
"""Sixteen of 16 bits."""


def _all(value: int | float, kind: Any = _INTS) -> Any:
    return ir.Constant(kind, [value] * LANES)


def _at(builder: Any, address: Any, index: Any, kind: Any, size: int) -> Any:
    """A pointer to the number `index` of those at `address`."""
    offset = builder.mul(index, ir.Constant(_LONG, size)) if size > 1 else index
    return builder.inttoptr(builder.add(address, offset), ir.PointerType(kind))


def _spread(builder: Any, value: Any) -> Any:
    none = ir.Constant(_FLOATS, ir.Undefined)
    one = builder.insert_element(none, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, none, ir.Constant(_INTS, [0] * LANES))


def _called(builder: Any, name: str, arguments: Any, kind: Any = _FLOATS) -> Any:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * len(arguments)), name)
    return builder.call(function, arguments)


def _intrinsic(result: Any, given: tuple[Any, ...], made: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        found = made(builder, arguments)
        return context.get_dummy_value() if result is types.void else found

    return result(*given), generate


_PLACE = (types.int64, types.int64)


@intrinsic
def field(_context: Any, address: Any, index: Any) -> Any:
    """A whole number of 8 bytes."""
    return _intrinsic(types.int64, _PLACE, lambda b, a: b.load(_at(b, a[0], a[1], _LONG, 8)))


@intrinsic
def field_float(_context: Any, address: Any, index: Any) -> Any:
    """A number of fp32 in a field's lower half."""
    return _intrinsic(types.float32, _PLACE, lambda b, a: b.load(_at(b, a[0], a[1], _FLOAT, 8)))


@intrinsic
def number(_context: Any, address: Any, index: Any) -> Any:
    """One of fp32."""
    return _intrinsic(types.float32, _PLACE, lambda b, a: b.load(_at(b, a[0], a[1], _FLOAT, 4)))


@intrinsic
def put(_context: Any, address: Any, index: Any, value: Any) -> Any:
    return _intrinsic(types.void, (*_PLACE, types.float32), lambda b, a: b.store(a[2], _at(b, a[0], a[1], _FLOAT, 4)))


@intrinsic
def number_bf16(_context: Any, address: Any, index: Any) -> Any:
    def made(b: Any, a: Any) -> Any:
        return b.bitcast(b.shl(b.zext(b.load(_at(b, a[0], a[1], _SHORT, 2)), _INT), ir.Constant(_INT, 16)), _FLOAT)

    return _intrinsic(types.float32, _PLACE, made)


@intrinsic
def load(_context: Any, address: Any, index: Any) -> Any:
    """Eight of fp32, `index` counted in numbers, as in all of these."""
    return _intrinsic(vector, _PLACE, lambda b, a: b.load(_at(b, a[0], a[1], _FLOATS, 4), align=4))


@intrinsic
def load_bf16(_context: Any, address: Any, index: Any) -> Any:
    def made(b: Any, a: Any) -> Any:
        half = b.load(_at(b, a[0], a[1], ir.VectorType(_SHORT, LANES), 2), align=2)
        return b.bitcast(b.shl(b.zext(half, _INTS), _all(16)), _FLOATS)

    return _intrinsic(vector, _PLACE, made)


@intrinsic
def no_wholes(_context: Any) -> Any:
    return _intrinsic(wholes, (), lambda b, a: _all(0))


@intrinsic
def load_shorts(_context: Any, address: Any, index: Any) -> Any:
    """Sixteen of 16 bits."""
    return _intrinsic(shorts, _PLACE, lambda b, a: b.load(_at(b, a[0], a[1], _SHORTS, 2), align=2))


@intrinsic
def load_bytes(_context: Any, address: Any, index: Any) -> Any:
    """Sixteen of 8 bits, with their signs, made 16."""
    return _intrinsic(shorts, _PLACE, lambda b, a: b.sext(b.load(_at(b, a[0], a[1], _BYTES, 1), align=1), _SHORTS))


@intrinsic
def load_pair(_context: Any, address: Any, index: Any) -> Any:
    """Two of 16 bits, eight times."""

    def made(b: Any, a: Any) -> Any:
        pair = b.load(_at(b, a[0], a[1], _INT, 2), align=2)
        none = ir.Constant(_INTS, ir.Undefined)
        return b.bitcast(b.shuffle_vector(b.insert_element(none, pair, _INT(0)), none, _all(0)), _SHORTS)

    return _intrinsic(shorts, _PLACE, made)


def _paired(b: Any, one: Any, two: Any, begin: int) -> Any:
    """Of two registers of bytes eight from `begin` on, one of each in turn, made 16 bits."""
    order = [place for lane in range(begin, begin + LANES) for place in (lane, 2 * LANES + lane)]
    return b.zext(b.shuffle_vector(one, two, ir.Constant(ir.VectorType(_INT, 2 * LANES), order)), _SHORTS)


def _halves(high: bool, begin: int) -> Callable[[Any, Any], Any]:
    def made(b: Any, a: Any) -> Any:
        both = [b.load(_at(b, a[0], at, _BYTES, 1), align=1) for at in a[1:]]
        mask = ir.Constant(_BYTES, [4 if high else 15] * 2 * LANES)
        one, two = (b.lshr(each, mask) if high else b.and_(each, mask) for each in both)
        return _paired(b, one, two, begin)

    return made


_TWO = (types.int64,) * 3


@intrinsic
def low_first(_context: Any, address: Any, one: Any, two: Any) -> Any:
    """Lower halves of the first eight bytes at `one` and at `two`, in turn, made 16 bits."""
    return _intrinsic(shorts, _TWO, _halves(False, 0))


@intrinsic
def low_last(_context: Any, address: Any, one: Any, two: Any) -> Any:
    """The same of the eight bytes after those."""
    return _intrinsic(shorts, _TWO, _halves(False, LANES))


@intrinsic
def high_first(_context: Any, address: Any, one: Any, two: Any) -> Any:
    """Higher halves."""
    return _intrinsic(shorts, _TWO, _halves(True, 0))


@intrinsic
def high_last(_context: Any, address: Any, one: Any, two: Any) -> Any:
    return _intrinsic(shorts, _TWO, _halves(True, LANES))


@intrinsic
def add_products(_context: Any, before: Any, x: Any, y: Any) -> Any:
    """Each number of `before` plus two neighbours of `x` times those of `y`, all whole."""

    def made(b: Any, a: Any) -> Any:
        kind = ir.FunctionType(_INTS, [_SHORTS, _SHORTS])
        both = b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx2.pmadd.wd"), [a[1], a[2]])
        return b.add(a[0], both)

    return _intrinsic(wholes, (wholes, shorts, shorts), made)


@intrinsic
def as_numbers(_context: Any, values: Any) -> Any:
    return _intrinsic(vector, (wholes,), lambda b, a: b.sitofp(a[0], _FLOATS))


@intrinsic
def store_shorts(_context: Any, address: Any, index: Any, values: Any) -> Any:
    """Eight whole numbers of fp32 as 16 bits."""

    def made(b: Any, a: Any) -> Any:
        short = ir.VectorType(_SHORT, LANES)
        b.store(b.trunc(b.fptosi(a[2], _INTS), short), _at(b, a[0], a[1], short, 2), align=2)

    return _intrinsic(types.void, (*_PLACE, vector), made)


@intrinsic
def magnitude(_context: Any, x: Any) -> Any:
    return _intrinsic(vector, (vector,), lambda b, a: b.bitcast(b.and_(b.bitcast(a[0], _INTS), _all(0x7FFFFFFF)), _FLOATS))


@intrinsic
def load_first(_context: Any, address: Any, index: Any) -> Any:
    """Of eight pairs of bf16 the first ones; `index` counts pairs."""

    def made(b: Any, a: Any) -> Any:
        return b.bitcast(b.shl(b.load(_at(b, a[0], a[1], _INTS, 4), align=4), _all(16)), _FLOATS)

    return _intrinsic(vector, _PLACE, made)


@intrinsic
def load_second(_context: Any, address: Any, index: Any) -> Any:
    def made(b: Any, a: Any) -> Any:
        return b.bitcast(b.and_(b.load(_at(b, a[0], a[1], _INTS, 4), align=4), _all(-65536)), _FLOATS)

    return _intrinsic(vector, _PLACE, made)


@intrinsic
def store(_context: Any, address: Any, index: Any, values: Any) -> Any:
    return _intrinsic(types.void, (*_PLACE, vector), lambda b, a: b.store(a[2], _at(b, a[0], a[1], _FLOATS, 4), align=4))


def _bf16_bits(b: Any, values: Any) -> Any:
    """Rounded to the nearest, to even between two; what is no number stays none."""
    bits = b.bitcast(values, _INTS)
    even = b.and_(b.lshr(bits, _all(16)), _all(1))
    rounded = b.lshr(b.add(bits, b.add(even, _all(0x7FFF))), _all(16))
    return b.select(b.fcmp_unordered("uno", values, values), _all(0x7FC0), rounded)


@intrinsic
def store_bf16(_context: Any, address: Any, index: Any, values: Any) -> Any:
    def made(b: Any, a: Any) -> Any:
        short = ir.VectorType(_SHORT, LANES)
        b.store(b.trunc(_bf16_bits(b, a[2]), short), _at(b, a[0], a[1], short, 2), align=2)

    return _intrinsic(types.void, (*_PLACE, vector), made)


@intrinsic
def as_bf16(_context: Any, values: Any) -> Any:
    """Rounded to what bf16 holds."""
    return _intrinsic(vector, (vector,), lambda b, a: b.bitcast(b.shl(_bf16_bits(b, a[0]), _all(16)), _FLOATS))


@intrinsic
def prefetch(_context: Any, address: Any, index: Any) -> Any:
    """Asks for the line at a byte; never a fault."""

    def made(b: Any, a: Any) -> Any:
        pointer = ir.PointerType(_BYTE)
        kind = ir.FunctionType(ir.VoidType(), [pointer, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
        b.call(function, [_at(b, a[0], a[1], _BYTE, 1), _INT(0), _INT(3), _INT(1)])

    return _intrinsic(types.void, _PLACE, made)


@intrinsic
def spread(_context: Any, value: Any) -> Any:
    """The same number eight times."""
    return _intrinsic(vector, (types.float32,), lambda b, a: _spread(b, a[0]))


@intrinsic
def fma(_context: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z."""
    return _intrinsic(vector, (vector,) * 3, lambda b, a: _called(b, "llvm.fma.v8f32", a))


@intrinsic
def mul(_context: Any, x: Any, y: Any) -> Any:
    return _intrinsic(vector, (vector,) * 2, lambda b, a: b.fmul(*a))


@intrinsic
def add(_context: Any, x: Any, y: Any) -> Any:
    return _intrinsic(vector, (vector,) * 2, lambda b, a: b.fadd(*a))


@intrinsic
def sub(_context: Any, x: Any, y: Any) -> Any:
    return _intrinsic(vector, (vector,) * 2, lambda b, a: b.fsub(*a))


@intrinsic
def div(_context: Any, x: Any, y: Any) -> Any:
    return _intrinsic(vector, (vector,) * 2, lambda b, a: b.fdiv(*a))


@intrinsic
def greater(_context: Any, x: Any, y: Any) -> Any:
    """The greater of each two; `x` where one is no number."""
    return _intrinsic(vector, (vector,) * 2, lambda b, a: b.select(b.fcmp_ordered("<", *a), a[1], a[0]))


@intrinsic
def lesser(_context: Any, x: Any, y: Any) -> Any:
    return _intrinsic(vector, (vector,) * 2, lambda b, a: b.select(b.fcmp_ordered(">", *a), a[1], a[0]))


@intrinsic
def nearest(_context: Any, x: Any) -> Any:
    """Whole numbers."""
    return _intrinsic(vector, (vector,), lambda b, a: _called(b, "llvm.nearbyint.v8f32", a))


@intrinsic
def power(_context: Any, x: Any) -> Any:
    """Two to the power of whole numbers of -126..127."""

    def made(b: Any, a: Any) -> Any:
        return b.bitcast(b.shl(b.add(b.fptosi(a[0], _INTS), _all(127)), _all(23)), _FLOATS)

    return _intrinsic(vector, (vector,), made)


@intrinsic
def root(_context: Any, x: Any) -> Any:
    return _intrinsic(types.float32, (types.float32,), lambda b, a: _called(b, "llvm.sqrt.f32", a, _FLOAT))


def _folded(b: Any, values: Any, join: Callable[[Any, Any], Any]) -> Any:
    count = LANES
    while count > 1:
        count //= 2
        parts = [ir.Constant(ir.VectorType(_INT, count), list(range(start, start + count))) for start in (0, count)]
        low, high = (b.shuffle_vector(values, values, part) for part in parts)
        values = join(low, high)
    return b.extract_element(values, ir.Constant(_INT, 0))


@intrinsic
def total(_context: Any, x: Any) -> Any:
    """Of the eight."""
    return _intrinsic(types.float32, (vector,), lambda b, a: _folded(b, a[0], b.fadd))


@intrinsic
def greatest(_context: Any, x: Any) -> Any:
    def made(b: Any, a: Any) -> Any:
        return _folded(b, a[0], lambda low, high: b.select(b.fcmp_ordered("<", low, high), high, low))

    return _intrinsic(types.float32, (vector,), made)


@intrinsic
def shared(_context: Any, address: Any, index: Any) -> Any:
    """A field that others change."""
    return _intrinsic(types.int64, _PLACE, lambda b, a: b.load_atomic(_at(b, a[0], a[1], _LONG, 8), "seq_cst", 8))


@intrinsic
def set_shared(_context: Any, address: Any, index: Any, value: Any) -> Any:
    def made(b: Any, a: Any) -> Any:
        b.store_atomic(a[2], _at(b, a[0], a[1], _LONG, 8), "seq_cst", 8)

    return _intrinsic(types.void, (*_PLACE, types.int64), made)


@intrinsic
def add_shared(_context: Any, address: Any, index: Any, value: Any) -> Any:
    """What it was before."""
    return _intrinsic(types.int64, (*_PLACE, types.int64), lambda b, a: b.atomic_rmw("add", _at(b, a[0], a[1], _LONG, 8), a[2], "seq_cst"))


@intrinsic
def take_shared(_context: Any, address: Any, index: Any, before: Any, after: Any) -> Any:
    """Whether it was `before`, and is `after` now."""

    def made(b: Any, a: Any) -> Any:
        found = b.cmpxchg(_at(b, a[0], a[1], _LONG, 8), a[2], a[3], "seq_cst", "seq_cst")
        return b.zext(b.extract_value(found, 1), _LONG)

    return _intrinsic(types.int64, (*_PLACE, types.int64, types.int64), made)


@intrinsic
def pause(_context: Any) -> Any:
    """Tells the processor that this thread only waits."""

    def made(b: Any, a: Any) -> Any:
        b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"), [])

    return _intrinsic(types.void, (), made)


@intrinsic
def call(_context: Any, function: Any, one: Any, two: Any, three: Any) -> Any:
    """A function of C by its address, of three whole numbers."""

    def made(b: Any, a: Any) -> Any:
        return b.call(b.inttoptr(a[0], ir.PointerType(ir.FunctionType(_LONG, [_LONG] * 3))), list(a[1:]))

    return _intrinsic(types.int64, (types.int64,) * 4, made)
