"""What schemathesis can't know of itself: models that are there (`MODEL`, and one whose vectors a node of little memory can make,
`EMBEDDER`), and that replies needn't be long."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

MODEL, EMBEDDER = os.environ["MODEL"], os.environ["EMBEDDER"]
MOST = 3
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
ENDLESS = {
    "/v1/chat/completions": ("max_completion_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/api/chat": ("options", "num_predict"),
    "/api/generate": ("options", "num_predict"),
    "/api/v1/models/{id}/inference": ("input", "max_tokens"),
    "/api/v1/inference/compare": ("input", "max_tokens"),
}
"""Where a body that gives no length gets a long reply: the field to give one in."""


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    known = _known(body, EMBEDDER if context.operation.path == "/v1/embeddings" else MODEL)
    place = ENDLESS.get(context.operation.path)
    if place is None or not isinstance(known, dict):
        return known
    holder = known if len(place) == 1 else known.setdefault(place[0], {})
    if isinstance(holder, dict) and not set(LENGTHS) & set(holder):
        holder[place[-1]] = MOST
    return known


def _known(value: Any, model: str) -> Any:
    if isinstance(value, list):
        return [_known(one, model) for one in value]
    if not isinstance(value, dict):
        return value
    known = {name: _known(one, model) for name, one in value.items()}
    if isinstance(known.get("model"), str) and known["model"]:
        known["model"] = model
    if isinstance(known.get("models"), list):
        known["models"] = [model if isinstance(one, str) else one for one in known["models"]]
    for name in LENGTHS:
        if isinstance(known.get(name), int) and known[name] > MOST:
            known[name] = MOST
    return known
