"""The one generator of synthetic models, for tests and benches: seeded N(0, 0.02) bf16 weights in a Llama shape.

`synthetic_llama` makes 16 MiB to 4 GiB of weights to move and code; `tiny_llama` makes a model of some 100,000 weights with a tokenizer
and chat template that transformers loads and runs. Written streaming, without torch: bf16 is the upper half of a float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

KIB, MIB = 1024, 1024 * 1024
_BATCH = 4 * MIB

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

Shapes = dict[str, tuple[int, ...]]


def llama_config(
    hidden: int, layers: int, vocabulary: int, heads: int, *, inner: int, tied: bool = False, context: int = 2048
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def llama_shapes(config: dict[str, Any]) -> Shapes:
    """Names and shapes of every tensor, as transformers names them."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, shape in {
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():  # fmt: skip
            shapes[f"{at}{name}.weight"] = shape
    return shapes


def write_safetensors(path: Path, shapes: Shapes, seed: int, dtype: str = "BF16", scale: float = 0.02) -> None:
    """Norms are ones, everything else N(0, scale); tensors sorted by name, as the library writes them."""
    width = {"BF16": 2, "F32": 4}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        length = int(np.prod(shapes[name])) * width
        header[name] = {"dtype": dtype, "shape": list(shapes[name]), "data_offsets": [end, end + length]}
        end += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.Generator(np.random.SFC64(seed))
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(shapes):
            for values in _values(name, int(np.prod(shapes[name])), random, scale):
                out.write(values.tobytes() if dtype == "F32" else _bf16(values).tobytes())


def _values(name: str, count: int, random: np.random.Generator, scale: float) -> Iterator[np.ndarray]:
    while count:
        take = min(count, _BATCH)
        if "norm" in name:
            yield np.ones(take, dtype=np.float32)
        else:
            yield random.standard_normal(take, dtype=np.float32) * np.float32(scale)
        count -= take


def _bf16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _write_model(path: Path, config: dict[str, Any], seed: int, files: int, dtype: str, scale: float) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}))
    shapes = llama_shapes(config)
    if files == 1:
        write_safetensors(path / "model.safetensors", shapes, seed, dtype, scale)
        return
    names = list(shapes)
    weight_map = {}
    for number in range(files):
        own = f"model-{number + 1:05}-of-{files:05}.safetensors"
        taken = names[number * len(names) // files : (number + 1) * len(names) // files]
        write_safetensors(path / own, {name: shapes[name] for name in taken}, seed + number, dtype, scale)
        weight_map.update(dict.fromkeys(taken, own))
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _usual_hidden(size: int) -> int:
    return 256 if size < 64 * MIB else 512 if size < 512 * MIB else 1024 if size < 2048 * MIB else 2048


def synthetic_llama(path: Path, size: int, seed: int = 0, files: int = 1, hidden: int | None = None) -> Path:
    """A model of about `size` bytes (16 MiB to 4 GiB) in bf16, with config.json; within a layer's size of what was asked.

    Layers of `hidden` 512 have 6 MiB, of 1024 (as in models of 0.4 billion weights) 25 MiB.
    """
    hidden = hidden or _usual_hidden(size)
    inner, vocabulary = hidden * 3, 8192
    layer = 2 * (hidden * hidden * 3 + 3 * hidden * inner + 2 * hidden)
    layers = max(2, (size - 4 * vocabulary * hidden) // layer)
    _write_model(path, llama_config(hidden, layers, vocabulary, hidden // 64, inner=inner), seed, files, "BF16", 0.02)
    return path


def tiny_llama(
    path: Path, seed: int = 0, layers: int = 4, *, tied: bool = False, files: int = 1, dtype: str = "BF16", inner: int = 128
) -> Path:
    """A model that transformers loads and runs: hidden 64, byte-level tokenizer of 256 bytes and six special tokens, chat template.

    Weights are wider (0.2) than a real model's, so that greedy choices are far from ties.
    """
    config = llama_config(64, layers, 256 + len(SPECIAL), 4, inner=inner, tied=tied)
    if dtype == "F32":
        config["torch_dtype"] = "float32"
    _write_model(path, config, seed, files, dtype, 0.2)
    write_tokenizer(path)
    return path


def write_tokenizer(path: Path) -> None:
    """tokenizer.json (special tokens 0 to 5, then every byte) and tokenizer_config.json with the template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
