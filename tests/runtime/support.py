"""Small models made on the spot, and their tensors laid out as groups in memfds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from runtime import interface as api

WORDS = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A llama of six small layers."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
    return config | changes


def tiny_model(config: dict[str, Any]) -> Any:
    """The reference: transformers' own class with seeded weights, in bf16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    kind = config["model_type"]
    made = AutoConfig.for_model(kind, **{key: value for key, value in config.items() if key != "model_type"})
    return AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16).eval()


def stored_tensors(model: Any) -> dict[str, torch.Tensor]:
    """As a file would hold them: a tied tensor once."""
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items() if name not in tied}


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(str(file), framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def for_stage(tensors: dict[str, torch.Tensor], list_name: str, first: int, end: int, layers: int) -> dict[str, torch.Tensor]:
    """What a planner gives layers [first, end): those layers, and all that lies outside of layers at either end (a head may be tied)."""
    out = {}
    for name, tensor in tensors.items():
        if name.startswith(list_name):
            if first <= int(name[len(list_name) :].split(".")[0]) < end:
                out[name] = tensor
        elif first == 0 or end == layers:
            out[name] = tensor
    return out


def lay_out(tensors: dict[str, torch.Tensor]) -> tuple[int, list[api.TensorPlace], int]:
    """One group in a memfd: descriptor, places, length."""
    body = bytearray()
    places = []
    for name, tensor in tensors.items():
        raw = bytes(tensor.contiguous().view(torch.uint8).numpy().reshape(-1)) if tensor.dim() else bytes(tensor.numpy())
        places.append(api.TensorPlace(name, WORDS[tensor.dtype], list(tensor.shape), 0, len(body), len(raw), 0))
        body += raw
        body += bytes(-len(body) % 64)
    fd = os.memfd_create("group")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(body)
    return fd, places, len(body)


def load_message(places: list[api.TensorPlace], length: int, first: int, end: int, layers: int, precision: str = "bf16") -> api.LoadStage:
    return api.LoadStage(
        stage=f"{first}-{end}-{precision}",
        model="m",
        first=first,
        end=end,
        layers=layers,
        tensors=places,
        lengths=[length],
        precision=precision,
    )


def model_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".safetensors"}


def config_bytes(config: dict[str, Any]) -> bytes:
    return json.dumps(config).encode()


def cuts(layers: int, stages: int) -> Iterable[tuple[int, int]]:
    edges = [round(layers * index / stages) for index in range(stages + 1)]
    return list(pairwise(edges))
