"""What kind of thing a model is, read from its own configuration; None where that doesn't say. Pure."""

from __future__ import annotations

from protocol.manifest import Summary


def category_of(summary: Summary) -> str | None:
    """What the model is for, read from its architecture's name; None where that doesn't say."""
    name = summary.architecture or ""
    endings = (
        ("ForCausalLM", "text-generation"),
        ("LMHeadModel", "text-generation"),
        ("ForConditionalGeneration", "text2text-generation"),
        ("ForSequenceClassification", "text-classification"),
        ("ForMaskedLM", "fill-mask"),
        ("ForImageClassification", "image-classification"),
        ("Model", "feature-extraction"),
    )
    return next((category for ending, category in endings if name.endswith(ending)), None)


def framework_of(summary: Summary) -> str | None:
    """`gguf` where the tensors are of its kinds, `transformers` where an architecture of theirs is named."""
    if summary.dtype and summary.dtype.upper().startswith(("Q", "IQ")):
        return "gguf"
    return "transformers" if summary.architecture else None


def tags_of(summary: Summary) -> list[str]:
    return [tag for tag in (summary.model_type, summary.architecture, summary.dtype) if tag]
