"""Documents name only what is there, and stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
DOCS = sorted([*TOP.glob("docs/*.md"), TOP / "README.md"])
_PATH = re.compile(r"`((?:node|protocol|erasure|runtime|bootstrap|tests|docs|bench)/[\w/.-]*)`")
_LINK = re.compile(r"\]\(([\w/.-]+)\)")


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_every_path_named_exists(document: Path) -> None:
    text = document.read_text()
    missing = [name for name in _PATH.findall(text) if not (TOP / name).exists()]
    missing += [name for name in _LINK.findall(text) if not (document.parent / name).exists()]
    assert missing == []


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`| {4})make ([a-z]+)", "".join(path.read_text() for path in DOCS)))
    assert named <= targets
