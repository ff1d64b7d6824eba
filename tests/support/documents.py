"""The documents of docs/CLI.md as a check: `check_document("status", document)`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "CLI.md"
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "any": (object,),
}  # fmt: skip


def schemas() -> dict[str, Any]:
    """Name of a document -> its schema."""
    found: dict[str, Any] = {}
    for section in GUIDE.read_text().split("\n### ")[1:]:
        title = section.split("\n", 1)[0].strip()
        for name, body in re.findall(r"```schema ?(\w*)\n(.*?)```", section, re.DOTALL):
            found[name or title] = json.loads(body)
    return found


def check_document(name: str, document: Any) -> None:
    """AssertionError naming the field that the guide says otherwise."""
    _check(schemas()[name], document, name)


def _check(schema: Any, value: Any, where: str) -> None:
    if isinstance(schema, str):
        if value is None:
            assert schema.endswith("?") or schema == "any", f"{where} is null"
            return
        wanted = _TYPES[schema.removesuffix("?")]
        assert isinstance(value, wanted), f"{where} is {type(value).__name__}, not {schema}"
        assert schema.startswith(("boolean", "any")) or not isinstance(value, bool), f"{where} is a boolean, not {schema}"
    elif isinstance(schema, list):
        assert isinstance(value, list), f"{where} is no list"
        for index, item in enumerate(value):
            _check(schema[0], item, f"{where}[{index}]")
    else:
        assert isinstance(value, dict), f"{where} is no map"
        for key, inner in schema.items():
            for name in value if key == "*" else [key]:
                assert name in value, f"{where}.{name} is missing"
                _check(inner, value[name], f"{where}.{name}")
