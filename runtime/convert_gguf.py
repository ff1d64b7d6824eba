"""Turns a GGUF file into a Hugging Face model directory of dense bf16: `python -m runtime.convert_gguf SOURCE DESTINATION [MEMORY]`.

The weights are unpacked by transformers itself, so that what we publish is what its users would get. The same
source gives the same bytes each time (tensors in a fixed order, no dates), thus the same model id everywhere.

With MEMORY (bytes) it shuts itself in before the file is opened: no network, no file but this one, nothing written but in the folder that
DESTINATION lies in, which is then the caller's own.
It says what it does as JSON lines on standard output.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
STEPS = 4


def convert(source: Path, destination: Path, memory: int | None = None) -> None:
    """Writes config, tokenizer, chat template and one safetensors file into the existing folder `destination`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from runtime.transformers_names import gguf_without_accelerate, import_for_gguf

    _said(1)
    if memory is not None:
        import_for_gguf()
        _shut_in(source, destination, memory)
    name = source.name
    unpack = GgufConfig(gguf_file=name, dequantize=True)
    with gguf_without_accelerate():
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(source.parent), gguf_file=name, quantization_config=unpack, dtype=torch.bfloat16, trust_remote_code=False
        )
    _said(2)
    _forget_quantization(model)
    model.save_pretrained(str(destination), max_shard_size="8GB")
    del model
    _said(3)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=name, trust_remote_code=False)
    tokenizer.save_pretrained(str(destination))
    _said(
        4, f"tokenizer ({len(tokenizer)} tokens), {'chat template' if tokenizer.chat_template else 'no chat template: the file has none'}"
    )


def _said(done: int, carried: str | None = None) -> None:
    print(json.dumps({"done": done, "total": STEPS} | ({"carried": carried} if carried else {})), flush=True)


def _shut_in(source: Path, destination: Path, memory: int) -> None:
    import tempfile

    from runtime import sandbox

    scratch = str(destination.parent)
    tempfile.tempdir = os.environ["TMPDIR"] = scratch
    sandbox.enter(scratch, memory // 2, [source.resolve()])


def _forget_quantization(model: Any) -> None:
    """`save_pretrained` refuses a model that still claims to be quantised."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None


def main() -> None:
    if len(sys.argv) not in (3, 4):
        raise SystemExit("usage: python -m runtime.convert_gguf SOURCE.gguf DESTINATION [MEMORY]")
    convert(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) == 4 else None)


if __name__ == "__main__":
    main()
