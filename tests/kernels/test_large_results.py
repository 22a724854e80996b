"""Results that outgrow the last cache are written past it; results that do not begin on a cache line are not."""

from __future__ import annotations

import pytest

from fastconv import registry
from fastconv.problem import Problem
from fastconv.profiling import machine
from fastconv.testing.check import check_conv

LINE = 64
WIDTH, CHANNELS = 512, 16
KERNELS = [
    k
    for k in registry.kernels()
    if k.op == "conv2d" and k.algorithm in ("igemm", "phases", "stem") and k.pass_ != "wgrad" and "cpu" in k.devices
]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_a_result_larger_than_the_last_cache_is_right(kernel, dtype, offset):
    size = {"f32": 4, "f64": 8}[dtype]
    assert CHANNELS * size % LINE == 0
    height = machine.last_cache() // (WIDTH * CHANNELS * size) + 1
    channels = {"fprop": {"c": 2, "k": CHANNELS}, "dgrad": {"c": CHANNELS, "k": 2}}[kernel.pass_]
    stride = 2 if kernel.algorithm == "phases" else 1
    problem = Problem(f"n1c1h{height}w{WIDTH}_k1r1s1_u{stride}_{dtype}nhwc").replace(pass_=kernel.pass_, **channels)
    if kernel.refuses(problem) is not None:
        pytest.skip(kernel.refuses(problem))
    check_conv(kernel, problem, seed=0, integer=True, offset=offset, threads=2)
