"""What importing fastconv costs and changes: a little time, and nothing else. And what its variables may hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastconv import settings

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 1.0  # of processor time beyond torch's own import

# Imports everything a user needs, and writes down every event that would touch the world, and every changed flag.
WATCHED = """
import json, os, random, signal, sys, time, warnings
import torch
import numpy

def flags():
    names = {}
    for module in (torch.backends.mkldnn, torch.backends.cudnn, torch.backends.cuda.matmul):
        for name in ("enabled", "flags", "deterministic", "benchmark", "allow_tf32", "fp32_precision"):
            try:
                names[f"{module.__name__}.{name}"] = str(getattr(module, name, None))
            except Exception as error:
                names[name] = str(error)
    return names | {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": str(torch.get_default_dtype()), "device": str(torch.get_default_device()),
        "gradient": torch.is_grad_enabled(), "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(), "denormals": 2.0**-1073 != 0,
        "cuda": torch.cuda.is_initialized(), "random": hash(random.getstate()),
        "torch_random": torch.random.get_rng_state().sum().item(), "numpy_random": str(numpy.random.get_state()[2]),
        "filters": len(warnings.filters), "hooks": str((sys.excepthook, sys.displayhook, sys.getrecursionlimit())),
        "environment": dict(os.environ), "folder": os.getcwd(), "autocast": torch.is_autocast_enabled("cpu"),
        "signals": {int(s): str(signal.getsignal(s)) for s in signal.valid_signals()},
        "openmp": torch.__config__.parallel_info().split("Environment")[0],
    }

events = []
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.fork", "os.exec", "os.posix_spawn", "os.mkdir", "os.remove",
                 "os.rename", "os.chmod", "os.symlink", "os.link", "socket.connect", "shutil.copyfile", "os.putenv"):
        events.append(f"{event} {arguments}")
    if event == "open":
        path, mode, bits = arguments
        if bits & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) and "/dev/" not in str(path):
            events.append(f"open {path}")

before = flags()
sys.addaudithook(watch)
start = time.process_time()
import fastconv
from fastconv import functional, nn
seconds = time.process_time() - start
fastconv.config, fastconv.explain, fastconv.swap, fastconv.Problem
after = flags()
print(json.dumps({
    "seconds": seconds, "events": events, "changed": [k for k in before if before[k] != after[k]],
    "modules": [m for m in ("triton", "torchvision", "rich", "typer", "PIL", "matplotlib") if m in sys.modules],
}))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict:
    """The report of one process that imports fastconv in a folder full of traps."""
    folder = tmp_path_factory.mktemp("traps")
    for name in ("fastconv", "conftest", "sitecustomize", "_build", "_C", "problem"):
        (folder / f"{name}.py").write_text("raise SystemExit('Code of the working directory was run.')\n")
    script = tmp_path_factory.mktemp("script") / "watch.py"
    script.write_text(WATCHED)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(script)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_import_is_quick(imported):
    assert imported["seconds"] < MOST_SECONDS


def test_import_starts_no_process_and_writes_nothing(imported):
    assert imported["events"] == []


def test_import_changes_no_global_state(imported):
    assert imported["changed"] == []


def test_import_loads_nothing_of_the_extras(imported):
    assert imported["modules"] == []


GARBAGE = [
    "",
    " ",
    "avx1024",
    "../../evil",
    "avx2\n",
    "AVX2",
    "$(touch evil)",
    "a b",
    "\x00".join("ab"),
    "é;",
    "-",
    ",",
]


@pytest.mark.parametrize("value", GARBAGE, ids=repr)
@pytest.mark.parametrize("variable", ["FASTCONV_ISA", "FASTCONV_KERNEL"])
def test_garbage_in_a_variable_is_a_value_error_that_names_it(variable, value):
    with pytest.raises(ValueError, match=f"^The environment variable {variable} is wrong. config: ") as error:
        settings.check_environment({variable: value})
    assert str(error.value).endswith(".")


def test_variables_set_their_switches():
    found = settings.check_environment({"FASTCONV_ISA": "scalar", "FASTCONV_KERNEL": "-*_aten", "FASTCONV_X": "1"})
    assert found == settings.Settings(kernel="-*_aten", isa="scalar")
    assert settings.check_environment({}) == settings.Settings()


@pytest.mark.parametrize("variable", ["FASTCONV_ISA", "FASTCONV_KERNEL"])
def test_a_wrong_variable_stops_the_first_use_and_the_command_line(variable, tmp_path):
    """Imports still work, so that the sentence can be read."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), variable: "$(touch evil)"}
    problem = "n1c1h1w1_k1r1s1_f32nhwc"
    code = "import torch, fastconv.functional as F; x = torch.ones(1, 1, 1, 1); print('imported'); F.conv2d(x, x)"
    for command in ([sys.executable, "-c", code], [sys.executable, "-m", "fastconv", "explain", problem]):
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode != 0
        assert f"The environment variable {variable} is wrong." in result.stderr
        assert (result.stdout == "imported\n") if "-c" in command else "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
