"""What kind of thing a model is, read from its own configuration; None where that doesn't say. Pure."""

from __future__ import annotations

from protocol.errors import BadInput
from protocol.manifest import Summary

CLASSIFIES = "text-classification"


def category_of(summary: Summary) -> str | None:
    """What the model is for, read from its architecture's name; None where that doesn't say."""
    name = summary.architecture or ""
    endings = (
        ("ForCausalLM", "text-generation"),
        ("LMHeadModel", "text-generation"),
        ("ForConditionalGeneration", "text2text-generation"),
        ("ForSequenceClassification", CLASSIFIES),
        ("ForMaskedLM", "fill-mask"),
        ("ForImageClassification", "image-classification"),
        ("Model", "feature-extraction"),
    )
    return next((category for ending, category in endings if name.endswith(ending)), None)


def check_generates(summary: Summary, model: str) -> None:
    """`BadInput` for a model that is known to give labels, not text."""
    if category_of(summary) == CLASSIFIES:
        raise BadInput(
            f"{model} ({summary.architecture}) is a {CLASSIFIES} model: it gives labels, it doesn't write",
            hint="POST /api/v1/models/{id}/inference with input.text, without parameters.stream",
            details={"category": CLASSIFIES},
        )


def check_classifies(summary: Summary, model: str) -> None:
    """`BadInput` for a model whose architecture isn't one with labels."""
    category = category_of(summary)
    if category != CLASSIFIES:
        raise BadInput(
            f"{model} ({summary.architecture or 'of no known architecture'}) is no {CLASSIFIES} model: it has no labels",
            hint="GET /api/v1/models?category=text-classification lists those that have",
            details={"category": category},
        )


def framework_of(summary: Summary) -> str | None:
    """`gguf` where the tensors are of its kinds, `transformers` where an architecture of theirs is named."""
    if summary.dtype and summary.dtype.upper().startswith(("Q", "IQ")):
        return "gguf"
    return "transformers" if summary.architecture else None


def tags_of(summary: Summary) -> list[str]:
    return [tag for tag in (summary.model_type, summary.architecture, summary.dtype) if tag]
