"""transformers alone, in a process of its own: `python -m tests.swarm.reference FOLDER THREADS TOKENS PROMPT...` prints greedy texts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.processes import TOP, environment


def start(folder: Path, threads: int, tokens: int, prompts: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.swarm.reference", str(folder), str(threads), str(tokens), *prompts]
    quiet = environment(OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(threads))
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TOP, env=quiet)


def texts(process: subprocess.Popen[str], timeout: float) -> list[str]:
    out, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0
    return list(json.loads(out.splitlines()[-1]))


def main(folder: str, threads: str, tokens: str, *prompts: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(int(threads))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    made = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        reply = model.generate(**given, max_new_tokens=int(tokens), do_sample=False)
        made.append(tokenizer.decode(reply[0, given["input_ids"].shape[1] :], skip_special_tokens=True))
    print(json.dumps(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
