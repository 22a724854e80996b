"""The command line as people run it: several processes through torchrun, interrupts, and the two together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastconv.training import checkpoint
from fastconv.training.team import Team
from tests.models.thin_detectors import THIN
from tests.training.detector_shares import gradients

ROOT = Path(__file__).parents[2]
TIMEOUT = 120
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
# Batches of 64 of 1,438 digits: 22 steps an epoch. Every sum over pictures is taken in another order by two processes.
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


def start(out: Path, *options: str, torchrun: bool = False, model: str = "lenet5_relu") -> subprocess.Popen:
    launcher = TORCHRUN if torchrun else ()
    command = [sys.executable, "-m", *launcher, "fastconv", "train", model, "--data", "digits", "--out", str(out)]
    return subprocess.Popen(
        [*command, "--batch", "64", "--epochs", "1", *options],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT, "env": ONE_THREAD},
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == code, output
    return output


def test_two_processes_learn_what_one_does_with_the_joint_batch(tmp_path: Path):
    running = [start(tmp_path / name, torchrun=name == "two") for name in ("one", "two")]
    outputs = [finish(process) for process in running]
    assert "1 process;" in outputs[0] and "2 processes;" in outputs[1]
    one, two = (checkpoint.read(tmp_path / name / "run.safetensors") for name in ("one", "two"))
    for name, tensor in one[0].items():
        assert torch.allclose(two[0][name], tensor, **CLOSE), name
    assert one[1]["history"][0]["held_accuracy"] == pytest.approx(two[1]["history"][0]["held_accuracy"], abs=0.01)


def test_two_processes_learn_from_boxes_what_one_does(tmp_path: Path):
    """Shares with two objects and with one: every sum is divided by the count of both."""
    script, path = Path(__file__).with_name("detector_shares.py"), tmp_path / "two.pt"
    command = [sys.executable, "-m", *TORCHRUN[:-1], str(script), str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = ONE_THREAD | {"PYTHONPATH": os.pathsep.join([str(ROOT), ONE_THREAD.get("PYTHONPATH", "")])}
    finish(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    two = torch.load(path)
    assert two.keys() == THIN.keys()
    for name, found in two.items():
        for key, gradient in gradients(name, Team()).items():
            assert torch.allclose(found[key], gradient, rtol=1e-9, atol=1e-12), (name, key)


def test_an_interrupted_run_goes_on_with_the_same_bits(tmp_path: Path):
    """Ctrl-C between two steps leaves a checkpoint; the second command ends where an undisturbed run does."""
    whole, part = start(tmp_path / "whole"), start(tmp_path / "part", "--every", "2")
    wait_for(tmp_path / "part" / "run.safetensors", part)
    part.send_signal(signal.SIGINT)
    assert "--resume goes on" in finish(part, 130)
    finish(whole)
    _, stopped = checkpoint.read(tmp_path / "part" / "run.safetensors")
    assert 0 < stopped["step"] < 22
    assert f"goes on after step {stopped['step']}" in finish(start(tmp_path / "part", "--resume"))
    states = [checkpoint.read(tmp_path / name / "run.safetensors") for name in ("whole", "part")]
    assert states[0][1]["history"] == states[1][1]["history"]
    for name, tensor in states[0][0].items():
        assert torch.equal(states[1][0][name], tensor), name


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + TIMEOUT
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.005)


@pytest.mark.full
def test_two_processes_resume(tmp_path: Path):
    """torchrun's SIGTERM reaches both; a network with batch norm, whose statistics are the mean of both shares."""
    model = "resnet20_cifar"
    whole = start(tmp_path / "whole", torchrun=True, model=model)
    finish(whole)
    part = start(tmp_path / "part", "--every", "2", torchrun=True, model=model)
    wait_for(tmp_path / "part" / "run.safetensors", part)
    part.send_signal(signal.SIGTERM)
    part.communicate(timeout=TIMEOUT)
    _, stopped = checkpoint.read(tmp_path / "part" / "run.safetensors")
    assert 0 < stopped["step"] < 22
    finish(start(tmp_path / "part", "--resume", torchrun=True, model=model))
    states = [checkpoint.read(tmp_path / name / "run.safetensors")[0] for name in ("whole", "part")]
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name


@pytest.mark.full
@pytest.mark.parametrize(("model", "epochs"), [("lenet5", "50"), ("lenet5_relu", "30")])
def test_lenet_reads_digits(tmp_path: Path, model: str, epochs: str):
    finish(start(tmp_path, "--epochs", epochs, "--batch", "16", model=model))
    _, state = checkpoint.read(tmp_path / "run.safetensors")
    assert state["history"][-1]["held_accuracy"] >= 0.98
