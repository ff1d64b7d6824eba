"""The generator's models are the size asked for, the same for a seed, and of the numbers they claim."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.synthetic import CHAT_TEMPLATE, MIB, synthetic_llama, tiny_llama


@pytest.mark.parametrize("size", [16 * MIB, 40 * MIB])
def test_size_and_seed(tmp_path: Path, size: int) -> None:
    one = synthetic_llama(tmp_path / "one", size, seed=5) / "model.safetensors"
    two = synthetic_llama(tmp_path / "two", size, seed=5) / "model.safetensors"
    assert 0.9 * size < one.stat().st_size < 1.01 * size
    assert one.read_bytes() == two.read_bytes()
    other = synthetic_llama(tmp_path / "other", size, seed=6) / "model.safetensors"
    assert one.read_bytes() != other.read_bytes()


def test_numbers_are_normal_bf16(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = synthetic_llama(tmp_path / "m", 16 * MIB) / "model.safetensors"
    with safe_open(path, "np") as file:
        assert file.get_slice("model.embed_tokens.weight").get_dtype() == "BF16"
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin, end = header["model.embed_tokens.weight"]["data_offsets"]
    start = 8 + int.from_bytes(data[:8], "little")
    bits = np.frombuffer(data[start + begin : start + end], "<u2").astype(np.uint32) << 16
    values = bits.view(np.float32)
    assert abs(values.mean()) < 0.001
    assert abs(values.std() - 0.02) < 0.001


def test_tokenizer_of_the_tiny_model(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path = tiny_llama(tmp_path / "m")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokens = tokenizer.encode("<|user|>Grüße!").ids
    assert tokens[0] == 4
    assert len(tokens) == 1 + len("Grüße!".encode())
    assert tokenizer.decode(tokens) == "Grüße!"
    assert tokenizer.get_vocab_size() == json.loads((path / "config.json").read_text())["vocab_size"]
    assert json.loads((path / "tokenizer_config.json").read_text())["chat_template"] == CHAT_TEMPLATE
