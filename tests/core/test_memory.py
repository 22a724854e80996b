"""Memory of large results is kept for the next ones, within its bound, and behaves like any tensor's."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import fastconv
from fastconv import functional

MIB = 2**20
ROOT = Path(__file__).parents[2]
WEIGHT = torch.ones(1, 1, 1, 1)


def result(mebibytes: int, value: float = 1.0) -> torch.Tensor:
    """A result of about so many MiB, each element ``value``."""
    return functional.conv2d(torch.full((1, 1, 256 * mebibytes, 1024), value), WEIGHT)


@pytest.fixture(autouse=True)
def fresh():
    fastconv.release_memory()
    before = fastconv.memory_stats()
    yield before
    fastconv.release_memory()


def test_the_next_result_takes_the_block_of_the_last(fresh):
    place = (first := result(4)).data_ptr()
    assert fastconv.memory_stats().live == fresh.live + 4 * MIB
    other = result(4)
    assert other.data_ptr() != place
    del first
    assert fastconv.memory_stats()[:2] == (fresh.live + 4 * MIB, fresh.kept + 4 * MIB)
    assert result(4).data_ptr() == place
    assert torch.equal(other, torch.ones_like(other))


def test_of_equal_blocks_the_last_freed_and_of_others_the_smallest():
    blocks = [result(size) for size in (8, 4, 4, 6)]
    places = [block.data_ptr() for block in blocks]
    while blocks:
        del blocks[0]
    held = [result(4) for _ in range(3)]
    assert [block.data_ptr() for block in held] == [places[2], places[1], places[3]]


def test_a_small_result_does_not_hold_a_large_block():
    place = result(16).data_ptr()
    assert result(4).data_ptr() != place
    assert result(8).data_ptr() == place


BOUND = """
import fastconv
from tests.core.test_memory import MIB, result
assert fastconv.memory_stats() == (0, 0, 0)
# 13 takes the block of 16, which is the youngest then; 18 is new and puts out 4, 1 and 40.
for size, kept in ((4, 4), (1, 5), (16, 21), (40, 61), (7, 68), (13, 68), (18, 41)):
    result(size)
    assert fastconv.memory_stats().kept == kept * MIB, size
assert fastconv.memory_stats().peak == 40 * MIB
"""


def test_what_is_kept_is_bounded_and_the_oldest_goes_first():
    """In a process of its own: any workspace that another test left behind counts."""
    run = subprocess.run([sys.executable, "-c", BOUND], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_release_gives_everything_back(fresh):
    result(8)
    assert fastconv.memory_stats().kept > fresh.kept
    fastconv.release_memory()
    assert fastconv.memory_stats() == (fresh.live, 0, fresh.live)


def test_switched_off_it_is_torchs_allocator(fresh):
    held = result(4)
    with fastconv.config(keep_memory=False):
        assert fastconv.memory_stats().kept == 0
        other = result(4)
        assert fastconv.memory_stats().live == fresh.live + 4 * MIB
        del held
        assert fastconv.memory_stats()[:2] == (fresh.live, 0)
        assert torch.equal(other, torch.ones_like(other))


def test_a_result_is_a_tensor_like_any_other():
    y = result(2, 3.0)
    expected = torch.full_like(y, 3.0)
    assert y.data_ptr() % 64 == 0 and y.untyped_storage().nbytes() == y.nbytes
    for other in (copy.deepcopy(y), pickle.loads(pickle.dumps(y)), y.clone(), y.clone().share_memory_()):
        assert torch.equal(other, expected)
    shared = result(2, 3.0).share_memory_()
    assert shared.is_shared() and torch.equal(shared, expected)
    y.resize_(4, 1024, 1024)
    assert torch.equal(y.flatten()[: expected.numel()], expected.flatten())
    y.resize_(0).untyped_storage().resize_(0)
    view = result(2, 3.0).numpy()
    result(2, 5.0)
    assert (view == 3.0).all()


def test_results_made_and_freed_by_many_threads_never_share_a_block():
    wrong: list[int] = []

    def work(number: int) -> None:
        for round_ in range(20):
            held = [result(1 + (number + round_) % 3, float(number)) for _ in range(3)]
            wrong.extend(number for y in held if not (y == number).all())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_profiler_sees_it():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        y = result(4)
    assert sum(event.cpu_memory_usage for event in profile.events() if "fastconv::conv2d" in event.name) >= y.nbytes


def test_a_wrong_environment_variable_is_named():
    code = "import fastconv, torch; fastconv.functional.conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1))"
    environment = {"FASTCONV_KEEP_MEMORY": "yes", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode != 0 and "FASTCONV_KEEP_MEMORY must be 0 or 1, but is 'yes'" in run.stderr
