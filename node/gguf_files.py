"""Which GGUF files a path means, and their headers: one file, the parts of a split one, or a folder that has no other weights."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from pathlib import Path

from protocol import limits
from protocol.errors import BadInput
from protocol.gguf_header import GgufHeader, parse_gguf

SUFFIX = ".gguf"
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")


def model_name(name: str) -> str:
    """A model's name from a file's: without suffix and number of a part."""
    part = _PART.fullmatch(name)
    return part[1] if part else name.removesuffix(SUFFIX)


def parts_of(path: Path) -> list[Path]:
    """The file, or all parts of a split one; `BadInput` where one of them isn't there."""
    part = _PART.fullmatch(path.name)
    if not part:
        return [path]
    if not 0 < int(part[3]) <= limits.MAX_FILES:
        raise BadInput(f"{path.name}: {int(part[3])} parts, 1 to {limits.MAX_FILES} allowed")
    names = [path.with_name(f"{part[1]}-{number:05}-of-{part[3]}{SUFFIX}") for number in range(1, int(part[3]) + 1)]
    if missing := [name for name in names if not name.is_file()]:
        raise BadInput(f"{path.name}: its part {missing[0].name} isn't there")
    return names


def check_one_model(root: Path, names: Sequence[str]) -> None:
    """`BadInput` where these GGUF files of a folder aren't one file, or all the parts of one."""
    models = {model_name(name) for name in names}
    if len(models) > 1:
        two = sorted(models)[:2]
        raise BadInput(f"{root}: several GGUF models ({two[0]}, {two[1]}, …)", hint="publish one of the files by its path")
    if len(parts_of(root / names[0])) != len(names):
        raise BadInput(f"{root}: {len(names)} GGUF files that aren't the parts of one", hint="publish one of the files by its path")


def read_gguf(fd: int, length: int) -> GgufHeader:
    """The checked header of an open file; mapped, so that its bytes are read once and only as far as they are looked at."""
    if length < 24:
        raise BadInput(f"gguf: the file has {length} bytes, too few for a header")
    with mmap.mmap(fd, min(length, limits.MAX_GGUF_HEADER), prot=mmap.PROT_READ) as mapping, memoryview(mapping) as view:
        return parse_gguf(view, length)
