"""Turns a GGUF file into a Hugging Face model directory of dense bf16: `python -m runtime.convert_gguf SOURCE DESTINATION`.

The weights are unpacked by transformers itself, so that what we publish is what its users would get. The same
source gives the same bytes each time (tensors in a fixed order, no dates), thus the same model id everywhere.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"


def convert(source: Path, destination: Path) -> None:
    """Writes config, tokenizer, chat template and one safetensors file into the existing folder `destination`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from runtime.transformers_names import gguf_without_accelerate

    unpack = GgufConfig(gguf_file=source.name, dequantize=True)
    with gguf_without_accelerate():
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(source.parent), gguf_file=source.name, quantization_config=unpack, dtype=torch.bfloat16
        )
    _forget_quantization(model)
    model.save_pretrained(str(destination), max_shard_size="8GB")
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(str(destination))


def _forget_quantization(model: Any) -> None:
    """`save_pretrained` refuses a model that still claims to be quantised."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m runtime.convert_gguf SOURCE.gguf DESTINATION")
    convert(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
