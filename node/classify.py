"""Classification: a score of each of the model's labels for each text."""

from __future__ import annotations

import math
import struct

from node.encode_texts import PRECISION, TextEncoder
from node.gateway import ClassificationRequest, Classifications
from node.locate import Located
from node.model_kinds import check_classifies
from protocol.errors import MfError
from protocol.ids import PeerId, model_text
from protocol.layout import layer_count
from runtime.labels import MAX_LABELS, check_labels


class Classifier:
    def __init__(self, me: PeerId, encoder: TextEncoder) -> None:
        self._me = me
        self._encoder = encoder

    async def classify(self, request: ClassificationRequest) -> Classifications:
        """Errors as those of a generation; `BadInput` for a model without labels."""
        made = await self._encoder.encode(request.model, request.inputs, "classify", request.timeout, _check)
        labels, located = _labels(made.labels), made.located
        scores = [_scores(row, len(labels)) for row in made.rows]
        stage = {"peer": self._me, "first": 0, "end": layer_count(located.manifest), "here": True}
        return Classifications(
            model_id=model_text(located.model),
            labels=labels,
            scores=scores,
            tokens=made.tokens,
            precision=PRECISION,
            route=[stage],
            timings=made.timings,
        )


def _check(located: Located) -> None:
    check_classifies(located.manifest.summary, model_text(located.model))


def _labels(labels: list[str]) -> list[str]:
    """The worker reads a stranger's files: what it says of them is looked at again before it is shown."""
    if not 1 <= len(labels) <= MAX_LABELS:
        raise MfError(f"the worker named {len(labels)} labels")
    return check_labels(labels)


def _scores(row: bytes, labels: int) -> list[float]:
    if len(row) != 4 * labels:
        raise MfError(f"the worker gave {len(row)} bytes as the scores of {labels} labels")
    scores = list(struct.unpack(f"<{labels}f", row))
    if not all(map(math.isfinite, scores)):
        raise MfError("the model gave values that aren't numbers")
    return scores
