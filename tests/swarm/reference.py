"""transformers alone, in a process of its own: `python -m tests.swarm.reference FOLDER THREADS TOKENS PROMPT...` prints greedy texts.

A worker runs bf16 by kernels whose sums round otherwise. Its reply is held to transformers' token by token, given the same text before: the
same token, or one whose logit lies within EPSILON of it (tests/runtime/test_demo_greedy.py has the measure).
"""

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


EPSILON = 0.25


def agrees(folder: Path, prompt: str, text: str, tokens: int) -> bool:
    """Whether each token of `text` is what transformers would say there, but for near ties; its end too where it is shorter than asked."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    chat = [{"role": "user", "content": prompt}]
    given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    before = given["input_ids"][0].tolist()
    made = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(made) < tokens - 2:  # texts come back as fewer tokens than they were made of, if at all
        made.append(tokenizer.eos_token_id)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([before + made])).logits[0, len(before) - 1 : -1].float()
    behind = logits.max(-1).values - logits.gather(1, torch.tensor(made)[:, None])[:, 0]
    return float(behind.max()) <= EPSILON


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
