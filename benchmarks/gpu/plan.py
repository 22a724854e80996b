"""What there is to do on a GPU, in units of some seconds, most valuable first. Needs no GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastconv import registry
from fastconv.kernels import pairs
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import corpus, gpu_cases, speed

ROOT = Path(__file__).parents[2]
SOURCES = ("csrc/core", "csrc/cuda", "fastconv/kernels", "fastconv/functional")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
BEHAVIOURS = ("stream", "no_wait", "graph", "streams", "repeated", "memory", "autograd", "device", "refusal")
BATCH, DTYPE, LAYOUT = 256, "bf16", "nhwc"
PASSES = tuple(speed.PASSES)
# One problem for each kind of kernel, in the order in which the targets are attacked.
HEADLINES = (
    "n256c144h56w56_k144r3s3_p1_g144_bf16nhwc_wgrad",
    "maxpool2d_n256c64h112w112_r3s3_u2_p1_bf16nhwc_indexu8",
    "maxpool2d_n256c64h112w112_r3s3_u2_p1_bf16nhwc_dgrad_indexu8",
    "avgpool2d_n256c192h35w35_r3s3_p1_bf16nhwc",
    "avgpool2d_n256c192h35w35_r3s3_p1_bf16nhwc_dgrad",
    "n256c144h56w56_k144r3s3_p1_g144_bf16nhwc",
    "n256c144h56w56_k144r3s3_p1_g144_bf16nhwc_dgrad",
    "n256c144h56w56_k144r3s3_u2_p1_g144_bf16nhwc",
    "n256c128h56w56_k128r3s3_p1_g32_bf16nhwc",
    "n256c3h224w224_k64r7s7_u2_p3_bf16nhwc_bias_relu",
    "n256c64h56w56_k256r1s1_bf16nhwc_bias_res_relu",
    "n256c256h14w14_k256r3s3_p1_bf16nhwc",
    "n256c256h14w14_k256r3s3_p1_bf16nhwc_dgrad",
    "n256c256h14w14_k256r3s3_p1_bf16nhwc_wgrad",
    "n256c256h28w28_k256r3s3_u2_p1_bf16nhwc_dgrad",
    "n256c64h56w56_k64r3s3_p1_bf16nhwc",
    "n256c256h14w14_k256r3s3_p1_tf32nhwc",
    "n64c256h14w14_k256r3s3_p1_f32nhwc",
)
# Functions of several ops: a ResNet's pairs of convolutions in training and its last one with a residual, and
# MobileNetV2's depthwise convolution with the 1x1 behind it.
FUNCTIONS = (
    "conv2d_batch_norm/n256c64h56w56_k64r3s3_p1_bf16nhwc_relu/n256c64h56w56_k256r1s1_bf16nhwc",
    "conv2d_batch_norm/n256c256h56w56_k64r1s1_bf16nhwc_relu/n256c64h56w56_k64r3s3_p1_bf16nhwc",
    "conv2d_batch_norm/n256c64h56w56_k256r1s1_bf16nhwc_res_relu",
    "depthwise_pointwise/n256c144h56w56_k144r3s3_p1_g144_bf16nhwc_relu6/n256c144h56w56_k24r1s1_bf16nhwc",
)
NETWORKS = (
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "efficientnet_b0",
    "resnext50_32x4d",
    "googlenet",
    "vgg16",
    "resnet18",
    "alexnet",
    "transposed",
)


@dataclass(frozen=True)
class Unit:
    """One piece of work. name: "kind/what[/more]", unique. seconds: what it may take, at most a few times over.
    alone: it is timed, or watches the device, so nothing else may run there.
    """

    name: str
    seconds: float
    alone: bool = False

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]

    @property
    def what(self) -> str:
        """The name behind the kind."""
        return self.name.split("/", 1)[1]


def kernels() -> list[Kernel]:
    """CUDA C++ kernels, then Triton's: all that run on GPUs and are ours."""
    rows = [kernel for kernel in registry.kernels() if kernel.devices == ("cuda",)]
    return sorted(rows, key=lambda kernel: kernel.gpu is None)


def units() -> list[Unit]:
    """All work, in order of value: does every kernel run and is right in brief; limits; streams and graphs; one timing
    of each kind; kernels of two problems, and functions of several ops; the sanitizers; the whole proof; the emulator
    beside the device; every layer of every network; and what compilation makes of the headlines, which takes longest.
    """
    rows = kernels()
    proofs = [Unit(f"prove/{k.name}/{dtype}", 40) for k in rows for dtype in gpu_cases.dtypes(k)]
    return [
        *(Unit(f"smoke/{k.name}", 7) for k in rows),
        Unit("limits/copy", 5, alone=True),
        *(Unit(f"limits/{dtype}", 5, alone=True) for dtype in ("bf16", "f16", "tf32", "f32")),
        *(Unit(f"behave/{name}", 5, alone=True) for name in BEHAVIOURS),
        *(Unit(f"time/{text}", 15, alone=True) for text in HEADLINES),
        *(Unit(f"pair/{pair.name}", 40) for pair in pairs.pairs()),
        *(Unit(f"function/{text}", 20, alone=True) for text in FUNCTIONS),
        *(Unit(f"sanitize/{tool}", 150, alone=True) for tool in TOOLS),
        *proofs,
        *(Unit(f"emulate/{k.name}", 30) for k in rows if k.gpu is not None),
        *(Unit(f"time/{problem}", 8, alone=True) for problem in layers() if str(problem) not in HEADLINES),
        *(Unit(f"compile/{text}", 90, alone=True) for text in HEADLINES if Problem(text).pass_ == "fprop"),
    ]


def layers() -> Iterator[Problem]:
    """Every layer of every network, forwards and backwards, in the batch, dtype and layout of training, each once."""
    seen = set()
    for network in NETWORKS:
        for base in corpus.load(network):
            forward = base.replace(n=BATCH, dtype=DTYPE, layout=LAYOUT)
            passes = (forward, *(corpus.backward(forward, pass_) for pass_ in ("dgrad", "wgrad")))
            for problem in passes if forward.pass_ == "fprop" else (forward,):
                image = problem is not None and problem.pass_ == "dgrad" and problem.c == speed.IMAGE_CHANNELS
                if problem is not None and not image and problem not in seen:
                    seen.add(problem)
                    yield problem


def digest(root: Path = ROOT) -> str:
    """Of all sources that a result depends on: results of other sources are made anew."""
    total = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".h", ".cu", ".cpp", ".inc", ".py"):
                total.update(str(path.relative_to(root)).encode())
                total.update(path.read_bytes())
    return total.hexdigest()[:16]


def pending(all_units: list[Unit], results: dict[str, dict], now: str) -> list[Unit]:
    """What is still to do with the sources ``now``, in order: what never ran, then what did not end well, once more.

    A result that says the kernel is wrong stands; an interrupted unit, or one of other sources, does not.
    """
    fresh, again = [], []
    for unit in all_units:
        found = results.get(unit.name)
        if found is None or found["sources"] != now:
            fresh.append(unit)
        elif found["outcome"] == "interrupted" and found.get("tries", 1) < 2:
            again.append(unit)
    return [*fresh, *again]
