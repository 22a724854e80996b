"""torch's FLOP counter knows the operators, whichever of the two is imported first, and waits for somebody to ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = "from fastconv import functional"
COUNTER = "from torch.utils.flop_counter import FlopCounterMode"
RELOADED = "import importlib, torch.utils.flop_counter as m; FlopCounterMode = importlib.reload(m).FlopCounterMode"
# Six filters of 3x2 taps on 5 channels, 4x6 results; a forward call, and its two gradients cost the same.
COUNT = """
x, w = torch.ones(1, 5, 6, 7, requires_grad=True), torch.ones(6, 5, 3, 2, requires_grad=True)
with FlopCounterMode(display=False) as counter:
    functional.conv2d(x, w).sum().backward()
print(counter.get_total_flops())
"""


def run(*lines: str) -> str:
    command = [sys.executable, "-c", "\n".join(("import sys, torch", *lines))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [(OURS, COUNTER), (COUNTER, OURS), (OURS, COUNTER, RELOADED)],
    ids=["before the counter", "after the counter", "reloaded"],
)
def test_flops_are_counted(imports):
    assert int(run(*imports, COUNT)) == 3 * 2 * (6 * 4 * 6) * (5 * 3 * 2)


def test_the_counter_is_not_imported_for_those_who_count_nothing():
    assert run(OURS, "print('torch.utils.flop_counter' in sys.modules)") == "False"


def test_the_counter_can_be_looked_for_without_being_imported():
    looked = "import importlib.util; assert importlib.util.find_spec('torch.utils.flop_counter').origin"
    assert int(run(OURS, looked, COUNTER, COUNT)) > 0
