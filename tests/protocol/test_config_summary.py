"""config.json: figures of real ones under their several names; absurd ones refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.config_summary import parse_config
from protocol.errors import BadInput, MfError
from protocol.manifest import Summary


def config(**fields: Any) -> bytes:
    return json.dumps({"model_type": "llama", **fields}).encode()


def test_llama_and_gpt2_names() -> None:
    llama = parse_config(
        config(architectures=["LlamaForCausalLM"], num_hidden_layers=30, hidden_size=576, num_attention_heads=9, num_key_value_heads=3,
               vocab_size=49152, max_position_embeddings=8192, torch_dtype="bfloat16", tie_word_embeddings=True, head_dim=64)
    )  # fmt: skip
    assert llama == Summary(
        model_type="llama", architecture="LlamaForCausalLM", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, vocabulary=49152,
        context=8192, dtype="bfloat16", tied=True,
    )  # fmt: skip
    gpt2 = parse_config(config(model_type="gpt2", n_layer=12, n_embd=768, n_head=12, n_positions=1024))
    assert (gpt2.layers, gpt2.hidden, gpt2.heads, gpt2.context, gpt2.tied) == (12, 768, 12, 1024, None)


def test_text_config_of_a_model_of_towers() -> None:
    summary = parse_config(
        config(text_config={"num_hidden_layers": 5, "tie_word_embeddings": False}, vision_config={"num_hidden_layers": 9})
    )
    assert (summary.layers, summary.tied) == (5, False)


@pytest.mark.parametrize(
    ("field", "most"),
    [("num_hidden_layers", limits.MAX_LAYERS), ("vocab_size", limits.MAX_VOCABULARY), ("hidden_size", limits.MAX_HIDDEN),
     ("num_attention_heads", limits.MAX_HEADS), ("max_position_embeddings", limits.MAX_CONTEXT)],
)  # fmt: skip
def test_figures_one_past(field: str, most: int) -> None:
    parse_config(config(**{field: most}))
    for wrong in (most + 1, 0, -1, 1.5, True, "3", [], 10**400):
        with pytest.raises(BadInput, match=field):
            parse_config(config(**{field: wrong}))


def test_size_and_depth_one_past() -> None:
    data = config(num_hidden_layers=1)
    parse_config(data + b" " * (limits.MAX_CONFIG - len(data)))
    with pytest.raises(BadInput, match="bytes"):
        parse_config(data + b" " * (limits.MAX_CONFIG - len(data) + 1))
    nested: Any = 1
    for _ in range(limits.MAX_DEPTH - 1):
        nested = [nested]
    parse_config(config(x=nested))
    with pytest.raises(BadInput, match="deeper"):
        parse_config(config(x=[nested]))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b"[" * 100_000, config(model_type=3), config(model_type="a b"), config(architectures=[{}])]
)
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        parse_config(data)


WORDS = st.text(alphabet="ab./", max_size=4)


@given(
    st.dictionaries(
        st.sampled_from(["model_type", "n_layer", "vocab_size", "dtype", "architectures", "text_config"]),
        st.none() | st.integers() | WORDS | st.booleans() | st.lists(WORDS, max_size=2) | st.dictionaries(WORDS, WORDS, max_size=2),
    )
)
def test_hostile_values_raise_nothing_else(fields: dict[str, Any]) -> None:
    with contextlib.suppress(MfError):
        parse_config(json.dumps(fields).encode())
