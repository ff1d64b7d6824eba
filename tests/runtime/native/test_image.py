"""Objects of a compiler's to images: distances filled in, anything else refused."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

import pytest

from runtime.native.image import Unlinkable, linked

llvm = pytest.importorskip("llvmlite.binding")


def object_of(text: str) -> bytes:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=0, reloc="pic", codemodel="small")
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    return bytes(machine.emit_object(module))


GOOD = """
@table = internal constant [4 x i64] [i64 3, i64 5, i64 7, i64 11]
define internal i64 @of(i64 %at) noinline {
  %p = getelementptr [4 x i64], ptr @table, i64 0, i64 %at
  %v = load i64, ptr %p
  ret i64 %v
}
define i64 @entry(i64 %at) {
  %a = call i64 @of(i64 %at)
  %b = add i64 %a, 100
  ret i64 %b
}
"""


def called(image: bytes, entry: int) -> Callable[[int], int]:
    room = mmap.mmap(-1, len(image), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    room.write(image)
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(ctypes.addressof(ctypes.c_char.from_buffer(room)) + entry)
    return lambda at, room=room: function(at)  # type: ignore[misc]


def test_code_and_constants_find_each_other() -> None:
    run = called(*linked(object_of(GOOD), "entry"))
    assert [run(at) for at in range(4)] == [103, 105, 107, 111]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("@x = global i64 3\ndefine ptr @entry() {\n ret ptr @x\n}", "something that changes"),
        ("@x = internal global [9 x i64] zeroinitializer\ndefine ptr @entry() {\n ret ptr @x\n}", "room of its own"),
        ("declare i64 @puts(ptr)\ndefine i64 @entry() {\n %a = call i64 @puts(ptr null)\n ret i64 %a\n}", "what lies elsewhere"),
        ("define i64 @other() {\n ret i64 1\n}", "0 functions of the name asked for"),
    ],
)
def test_what_asks_for_more_is_refused(text: str, said: str) -> None:
    with pytest.raises(Unlinkable, match=said):
        linked(object_of(text), "entry")


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(Unlinkable, match="another kind"):
        linked(b"MZ" + bytes(200), "entry")
