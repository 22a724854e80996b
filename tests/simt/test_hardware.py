"""The way to a GPU and back, walked on the CPU with an emulated kernel in the GPU's place; and where there is a GPU,
every kernel on it, in brief (``python -m benchmarks.gpu`` does it in full).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastconv.problem import Problem
from fastconv.testing import emulator, hardware
from fastconv.testing.check import check_conv
from fastconv.testing.check_pair import behind, check_pair
from fastconv.testing.check_pool import check_pool

CONVOLUTIONS = (
    "n2c5h7w9_k6r3s2_u2x3_p1x0_f32nhwc_bias_res_relu",
    "n1c18h5w4_k20r1s1_f32nhwc_bias_out3of29",
    "n1c18h5w4_k20r1s1_f32nchw_dgrad",
    "n1c18h5w4_k20r1s1_f32nhwc_wgrad",
)
POOLS = ("maxpool2d_n2c8h9w7_r3s2_f16nhwc_indexu8", "maxpool2d_n2c3h9w7_r3s2_f32nchw_indexi64_dgrad")
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU here.")


def travelling(name: str):
    return hardware.through(emulator.kernel(name), "cpu")


@pytest.mark.parametrize("text", CONVOLUTIONS)
@pytest.mark.parametrize("offset", [0, 3])
def test_convolutions_travel(text, offset):
    problem = Problem(text)
    check_conv(travelling(f"conv2d/{problem.pass_}_igemm_simt"), problem, offset=offset, weight_gap=1)


@pytest.mark.parametrize("text", POOLS)
def test_pools_travel_with_their_indices(text):
    problem = Problem(text)
    check_pool(travelling(f"maxpool2d/{problem.pass_}_window_simt"), problem, kind="ties", offset=3)


@pytest.mark.parametrize("number", [0, 3])
def test_pairs_travel(number):
    first = Problem("n1c8h5w4_k8r3s3_p1_g8_f32nhwc_bias_relu")
    pair = next(pair for pair in emulator.pairs() if pair.name.endswith("_simt"))
    check_pair(hardware.pair_through(pair, "cpu").run, first, behind(first, 5, "_out2of9"), number, integer=True)
    lazy = hardware.pair_through(replace(pair, run=lambda *_, out, **__: out.clone()), "cpu")
    with pytest.raises(RuntimeError, match="did not write the tensor it was given"):
        check_pair(lazy.run, first, behind(first, 5), number, integer=True)


def test_what_is_written_around_a_result_travels_back():
    def spills(problem, *, out, **operands):
        hardware.whole(out)[0] = 1
        return out.zero_()

    problem = Problem(CONVOLUTIONS[0])
    kernel = hardware.through(replace(emulator.kernel("conv2d/fprop_igemm_simt"), run=spills), "cpu")
    with pytest.raises(AssertionError, match="1 elements outside the output changed, the first at storage offset 0"):
        check_conv(kernel, problem)


def test_a_kernel_that_leaves_its_target_alone_is_an_error():
    kernel = replace(emulator.kernel("conv2d/fprop_igemm_simt"), run=lambda problem, out, **_: out.clone())
    with pytest.raises(RuntimeError, match="did not write the tensor it was given"):
        check_conv(hardware.through(kernel, "cpu"), Problem(CONVOLUTIONS[0]))


@ON_A_GPU
@pytest.mark.parametrize("text", [*CONVOLUTIONS, *POOLS])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_kernels_on_a_gpu(text, dtype):
    problem = Problem(text).replace(dtype=dtype)
    for kernel in hardware.rows():
        if hardware.accepts(kernel, problem):
            if problem.is_conv:
                check_conv(kernel, problem)
            else:
                check_pool(kernel, problem, kind="ties")
