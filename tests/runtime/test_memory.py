from __future__ import annotations

import subprocess
import sys

from runtime.memory import activation_bytes, kv_bytes, stage_bytes, weight_bytes


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
