"""What a stage of a model takes of memory: the manifest's numbers put into the runtime's formula."""

from __future__ import annotations

from protocol.layout import layer_bytes
from protocol.manifest import Manifest
from runtime.memory import WIDTHS, stage_bytes, tied_head_bytes

_STORED_WIDTH = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}


class StageCost:
    """`precision` bf16|fp32|int8|int4: weights are counted at the width they run in."""

    def __init__(self, manifest: Manifest, precision: str) -> None:
        widths = WIDTHS[precision]
        stored = _stored_width(manifest)
        sizes, summary = layer_bytes(manifest), manifest.summary
        self._layers = [int(size * widths.matrix / stored) for size in sizes.layers]
        self._embed, self._head, self._tied = int(sizes.embed * widths.rest / stored), int(sizes.head * widths.head / stored), sizes.tied
        self._tied_head = tied_head_bytes(self._embed, precision)
        self._width = widths.dtype
        self._hidden = summary.hidden or 0
        self._vocabulary = summary.vocabulary or 0
        heads = summary.heads or 1
        self._kv_heads = summary.kv_heads or heads
        self._head_dim = summary.head_dim or self._hidden // heads

    def total(self, first: int, end: int, tokens_max: int) -> int:
        """Bytes of layers [first, end) with room for `tokens_max` positions."""
        return stage_bytes(
            self._layers,
            self._embed,
            self._head,
            self._tied,
            first,
            end,
            len(self._layers),
            self._kv_heads,
            self._head_dim,
            tokens_max,
            self._width,
            self._hidden,
            self._vocabulary,
            self._tied_head,
        )


def _stored_width(manifest: Manifest) -> int:
    """Bytes per element of the commonest dtype, by bytes."""
    weight: dict[int, int] = {}
    for tensor in manifest.tensors:
        width = _STORED_WIDTH.get(tensor.dtype, 2)
        weight[width] = weight.get(width, 0) + tensor.length
    return max(weight, key=lambda width: weight[width], default=2)
