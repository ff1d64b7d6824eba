from __future__ import annotations

import subprocess
import sys
from math import prod

from runtime.interface import TensorPlace
from runtime.memory import SMALL_HEAD, WIDTHS, activation_bytes, held_bytes, kv_bytes, stage_bytes, tied_head_bytes, weight_bytes


def test_a_tied_embedding_lies_once_in_a_whole_model_and_again_at_the_last_stage() -> None:
    layers = [100] * 6
    assert weight_bytes(layers, 50, 7, True, 0, 6, 6) == 657
    assert weight_bytes(layers, 50, 7, True, 4, 6, 6) == 257
    assert weight_bytes(layers, 50, 7, False, 4, 6, 6) == 207
    assert weight_bytes(layers, 50, 7, True, 2, 4, 6) == 200


def test_a_stage_is_weights_and_kv_and_activations() -> None:
    total = stage_bytes([100] * 6, 50, 7, False, 2, 6, 6, 3, 64, 512, 2, 576, 49152)
    assert total == 407 + kv_bytes(4, 3, 64, 512, 2) + activation_bytes(576, 49152, 2)
    assert kv_bytes(4, 3, 64, 512, 2) == 2 * 4 * 3 * 64 * 512 * 2


def test_the_planner_gets_the_formula_without_torch() -> None:
    check = "import sys, runtime.memory, runtime.sandbox, node.worker; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def place(name: str, shape: list[int], dtype: str = "BF16") -> TensorPlace:
    width = 2 if dtype == "BF16" else 4
    return TensorPlace(name, dtype, shape, 0, 0, prod(shape) * width, 0)


def test_what_each_precision_holds() -> None:
    layer = [place("model.layers.0.mlp.up_proj.weight", [100, 64]), place("model.layers.0.input_layernorm.weight", [64])]
    embed, head = place("model.embed_tokens.weight", [1000, 64]), place("lm_head.weight", [1000, 64])
    held = {precision: held_bytes(layer, precision, False, False) for precision in WIDTHS}
    assert held == {"bf16": 12928, "fp32": 25856, "int8": 6592, "int4": 4128, "q8_0": 6928, "q4_1": 4128}
    untied = [held_bytes([*layer, embed, head], precision, True, True) - held[precision] for precision in WIDTHS]
    assert untied == [256_000, 512_000, 192_640, 192_640, 196_000, 196_000]
    tied = [held_bytes([*layer, embed], precision, True, True) - held[precision] for precision in WIDTHS]
    assert tied == [256_000, 256_000, 192_640, 192_640, 196_000, 196_000]
    head_alone = [held_bytes([*layer, embed], precision, False, True) - held[precision] for precision in WIDTHS]
    assert head_alone == [128_000, 256_000, 64_640, 64_640, 68_000, 68_000], "a last stage keeps the embedding as its head and no more"
    assert held_bytes([*layer, place("model.embed_tokens.weight", [1000, 64], "F32")], "bf16", True, False) == held["bf16"] + 128_000


def test_a_large_tied_head_is_not_packed_beside_the_embedding() -> None:
    assert tied_head_bytes(SMALL_HEAD, "bf16") == SMALL_HEAD
    assert tied_head_bytes(SMALL_HEAD + 2, "bf16") is None
    assert tied_head_bytes(1000, "fp32") is None
    assert weight_bytes([100] * 6, 50, 7, True, 0, 6, 6, 25) == 682
    assert weight_bytes([100] * 6, 50, 7, True, 4, 6, 6, 25) == 232
