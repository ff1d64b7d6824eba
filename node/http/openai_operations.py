"""`/v1` in the OpenAPI document."""

from __future__ import annotations

from node.http import openai_replies as replies
from node.http import openai_schemas as schemas
from node.http.operation import ASK, ONE, RAN, Operation
from node.http.responses_schemas import ResponsesRequest

OPERATIONS = [
    Operation("get", "/v1/models", "Models, in OpenAI's shape, the first 4,096 by name", replies.OpenAIModels),
    Operation("get", "/v1/models/{id}", "One model, in OpenAI's shape", replies.OpenAIModel, errors=ONE),
    Operation(
        "post",
        "/v1/chat/completions",
        "A chat's next message, in OpenAI's shape",
        replies.ChatCompletion,
        schemas.ChatRequest,
        example={
            "model": "",
            "messages": [{"role": "user", "content": "Name the capital of France."}],
            "max_tokens": 64,
            "stream": True,
        },
        events="ChatChunk in each `data:`, then `data: [DONE]`",
        errors=ASK,
        headers=RAN,
    ),
    Operation(
        "post",
        "/v1/completions",
        "How texts go on, in OpenAI's shape",
        replies.Completion,
        schemas.CompletionsRequest,
        example={"model": "", "prompt": "The capital of France is", "max_tokens": 32},
        events="Completion in each `data:`, then `data: [DONE]`",
        errors=ASK,
        headers=RAN,
    ),
    Operation(
        "post",
        "/v1/responses",
        "A conversation's next items, in OpenAI's shape; nothing is kept",
        replies.Response,
        ResponsesRequest,
        example={"model": "", "input": "Name the capital of France.", "max_output_tokens": 64},
        events="OpenAI's events `response.created` to `response.completed`, each with its sequence_number",
        errors=ASK,
        headers=RAN,
    ),
    Operation(
        "post",
        "/v1/embeddings",
        "Texts as vectors of length 1, in OpenAI's shape",
        replies.EmbeddingList,
        schemas.EmbeddingsRequest,
        example={"model": "", "input": ["A text", "Another one"]},
        errors=ASK,
    ),
]
EVENT_TYPES = [replies.ChatChunk]
