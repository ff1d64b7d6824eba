"""What schemathesis can't know of itself: a model that is there (`MODEL`), and that replies needn't be long."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

MODEL = os.environ["MODEL"]
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
MOST = 3


@schemathesis.hook  # type: ignore[misc]
def map_body(context: Any, body: Any) -> Any:
    return _known(body)


def _known(value: Any) -> Any:
    if isinstance(value, list):
        return [_known(one) for one in value]
    if not isinstance(value, dict):
        return value
    known = {name: _known(one) for name, one in value.items()}
    if isinstance(known.get("model"), str) and known["model"]:
        known["model"] = MODEL
    if isinstance(known.get("models"), list):
        known["models"] = [MODEL if isinstance(one, str) else one for one in known["models"]]
    for name in LENGTHS:
        if isinstance(known.get(name), int) and known[name] > MOST:
            known[name] = MOST
    return known
