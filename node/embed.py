"""Embeddings: a vector of length 1 for each text."""

from __future__ import annotations

from node.encode_texts import TextEncoder
from node.gateway import EmbeddingRequest, Embeddings
from protocol.ids import model_text


class Embedder:
    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Vectors in the order of the inputs; errors as those of a generation."""
        made = await self._encoder.encode(request.model, request.inputs, "embed", request.timeout)
        return Embeddings(model_text(made.located.model), made.rows, made.tokens)
