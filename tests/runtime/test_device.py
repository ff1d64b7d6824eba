"""Which device is taken, and that a model runs wherever its weights lie."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from protocol.errors import BadInput
from runtime import device
from runtime.device import CPU, Device, choose, device_of

TOP = Path(__file__).parents[2]
TWO = [Device("cuda:0", 8 << 30), Device("cuda:1", 24 << 30), Device("cpu")]


@pytest.mark.parametrize(
    ("asked", "devices", "taken"),
    [
        ("auto", TWO, "cuda:0"),
        ("auto", [Device("mps"), Device("cpu")], "mps"),
        ("auto", [Device("cpu")], "cpu"),
        ("cuda", TWO, "cuda:0"),
        ("cuda:1", TWO, "cuda:1"),
        ("cpu", TWO, "cpu"),
    ],
)
def test_the_one_that_is_meant(asked: str, devices: list[Device], taken: str) -> None:
    assert choose(asked, devices).name == taken


@pytest.mark.parametrize("asked", ["cuda:2", "mps", "xpu"])
def test_one_that_isnt_here_is_said_with_those_that_are(asked: str) -> None:
    with pytest.raises(BadInput, match=f"'{asked}' isn't here; this machine has cuda:0, cuda:1, cpu"):
        choose(asked, TWO)


def test_the_cpu_is_always_there() -> None:
    assert device.found()[-1].name == "cpu"
    assert device.take("cpu").name == "cpu"


def test_weights_on_the_meta_device_stay_there() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, device="meta"), torch.nn.Linear(2, 2))
    device.place(model, torch.device("meta"))
    assert all(one.is_meta for one in model.parameters())
    assert device_of(model) == CPU
    assert device_of(torch.nn.Sequential(torch.nn.Linear(2, 2, device="meta"), torch.nn.Linear(2, 2))) == CPU


def test_everything_runs_where_the_weights_lie_and_gives_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.runtime.run_elsewhere", str(tmp_path)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.strip() == "the same"
