"""The layers of whole networks, forwards and backwards, against the better of torch's two layouts.

Both sides are the call a user or autograd makes (peer.py), with the result allocated in it, in turns in one process:
ours in channels_last with the dispatcher's choice, torch's in NCHW and in channels_last, weights included. Pools run in
NCHW on both sides too. Every result, torch's also, is checked against float64 before anything is timed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import sleep

import torch

from fastconv import dispatch
from fastconv.problem import Problem
from fastconv.profiling import timer
from fastconv.profiling.machine import NEAR, Machine, round_trip, threads_are_bound
from fastconv.profiling.roofline import Ceilings
from fastconv.profiling.timer import Timing
from fastconv.testing import bench, corpus, oracle, peer, summary

PASSES = {"fprop": "Forward", "dgrad": "Gradient of the input", "wgrad": "Gradient of the weight"}
NETWORKS = (
    "resnet18",
    "resnet50",
    "vgg16",
    "googlenet",
    "densenet121",
    "alexnet",
    "mobilenet_v2",
    "efficientnet_b0",
    "resnext50_32x4d",
    "transposed",
)
BATCHES = (1, 8)
IMAGE_CHANNELS = 3  # nobody asks for the gradient of an image
LAYOUTS = {"nhwc": "channels_last", "nchw": "NCHW"}
WORST = 8  # layers listed by name
DIGITS = 4  # of a number in a file
ATTEMPTS = 3  # at a layer during which the cores moved apart
PAUSE = 0.5  # seconds between two looks at them


@dataclass(frozen=True)
class Job:
    """A problem as its kernels see it. transposed: its layer is a transposed convolution, whose forward pass is a dgrad
    and whose input's gradient an fprop.
    """

    problem: Problem
    transposed: bool


@dataclass(frozen=True)
class Layer:
    """A job that was timed: our time in the problem's layout, torch's in the layouts it was given, the least time.

    counts: how often each network has it.
    """

    job: Job
    counts: dict[str, int]
    kernel: str
    own: Timing
    torch: dict[str, Timing]
    limit: float
    round_trip: float | None = None  # between two cores, seconds

    @property
    def problem(self) -> Problem:
        return self.job.problem

    @property
    def torch_best(self) -> float:
        """Seconds of the better torch layout."""
        return min(timing.median for timing in self.torch.values())

    @property
    def standing(self) -> float:
        """Torch's time / ours."""
        return self.torch_best / self.own.median

    def as_dict(self) -> dict[str, object]:
        """For JSON: medians in seconds; spread is ours, (p90 - p10) / median."""
        return {
            "problem": str(self.problem),
            "transposed": self.job.transposed,
            "counts": self.counts,
            "kernel": self.kernel,
            "own": _short(self.own.median),
            "spread": _short(self.own.spread),
            "torch": {layout: _short(timing.median) for layout, timing in self.torch.items()},
            "limit": _short(self.limit),
            "round_trip": self.round_trip and _short(self.round_trip),
            "standing": _short(self.standing),
        }


class Patience:
    """Seconds that a run may wait, all in all, for cores that are near each other.

    What two cores hand each other takes several times as long where they share no cache, and a virtual machine's move
    while it runs. Waiting depends on the round trip alone, never on what a kernel's time turns out to be.
    """

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def wait(self) -> None:
        """Until they are near, or nothing is left."""
        while self.left > 0 and is_far(round_trip()):
            sleep(PAUSE)
            self.left -= PAUSE


def is_far(trip: float | None) -> bool:
    """Whether cores that answer each other in this time share no cache."""
    return trip is not None and trip > NEAR


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def is_transposed(layer: Problem) -> bool:
    """Whether a corpus' forward problem is a transposed convolution's."""
    return layer.is_conv and layer.pass_ == "dgrad"


def step(layer: Problem, pass_: str) -> Problem | None:
    """What a pass asks of a layer; None where it asks nothing: the gradient of an image, or of a pool's weights."""
    if pass_ == "fprop":
        return layer
    if not is_transposed(layer):
        wanted = pass_ == "wgrad" or not layer.is_conv or layer.c != IMAGE_CHANNELS
        return corpus.backward(layer, pass_) if wanted else None
    return corpus.backward(layer, "fprop" if pass_ == "dgrad" else pass_)


def work(pass_: str, networks: Iterable[str] = NETWORKS) -> dict[Job, dict[str, int]]:
    """Everything a pass asks at every batch size, each problem once, with how often each network has it."""
    jobs: dict[Job, dict[str, int]] = {}
    for network in networks:
        for layer, count in corpus.load(network).items():
            problem = step(layer, pass_)
            for batch in BATCHES if problem else ():
                for layout in ("nhwc",) if layer.is_conv else LAYOUTS:
                    job = Job(problem.replace(n=batch, layout=layout), is_transposed(layer))
                    counts = jobs.setdefault(job, {})
                    counts[network] = counts.get(network, 0) + count
    return jobs


@torch.no_grad()
def time_job(
    job: Job, counts: dict[str, int], ceilings: Ceilings, seconds: float, patience: Patience | None = None
) -> Layer:
    """Checks both sides and times them in turns, ``seconds`` each, while the cores are near each other as long as there
    is patience. RuntimeError when a result is wrong.
    """
    patience = patience or Patience(0)
    problem, exact = job.problem, oracle.ask(job.problem)
    kernel = dispatch.plan(problem).name
    calls = {}
    for layout in ("nhwc", "nchw") if problem.layout == "nhwc" else ("nchw",):
        tensors = bench.operand_sets(exact.tensors, problem.replace(layout=layout), cold=False)[0]
        own, torchs = peer.training_calls(problem.replace(layout=layout), tensors, job.transposed)
        sides = {f"torch {layout}": (torchs, "conv2d/torch_aten")}
        if layout == problem.layout:
            sides["own"] = own, kernel
        for side, (call, name) in sides.items():
            wrong = exact.verdict_of_call(call(), tensors, name)
            if wrong:
                raise RuntimeError(f"{name} on {problem}: {wrong}")
            calls[side] = call
    for _ in range(ATTEMPTS):
        patience.wait()
        timings = timer.in_turns(calls, seconds)
        trip = round_trip()
        if not is_far(trip) or patience.left <= 0:
            break
    own = timings.pop("own")
    torchs = {side.removeprefix("torch "): timing for side, timing in timings.items()}
    return Layer(job, counts, kernel, own, torchs, ceilings.limit(problem), trip)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _row(title: str, weighted: Sequence[tuple[Layer, int]]) -> str:
    """One line of the table: totals with multiplicities, then ratios layer by layer."""
    own, best, limit = (
        sum(count * value(layer) for layer, count in weighted)
        for value in (lambda x: x.own.median, lambda x: x.torch_best, lambda x: x.limit)
    )
    fixed = [
        sum(n * x.torch[at].median for x, n in weighted) if all(at in x.torch for x, _ in weighted) else None
        for at in ("nchw", "nhwc")
    ]
    geomean = summary.geomean((layer.standing, count) for layer, count in weighted)
    worst = min(layer.standing for layer, _ in weighted)
    cells = [title, *("-" if t is None else _ms(t) for t in fixed), _ms(own), f"{best / own:.2f}x", f"{geomean:.2f}x"]
    return f"| {' | '.join([*cells, f'{worst:.2f}x', f'{limit / own * 100:.0f} %'])} |"


def heading(machine: Machine, ceilings: Ceilings) -> str:
    """What the numbers are, and the machine they were measured on."""
    bound = " bound to cores" if threads_are_bound() else ""
    return (
        f"{machine.cpu}, {machine.threads} threads{bound}, {machine.isa}; torch {machine.torch}, "
        f"commit {machine.commit}, {machine.date[:10]}. Limits measured in the same run: "
        f"{ceilings.flops['f32'] / 1e9:.0f} GFLOP/s, {ceilings.memory / 1e9:.0f} GB/s. "
        "ms a network's convolutions take together; ratios are the better torch layout, layer by layer, over fastconv "
        "(channels_last, float32). A problem that several networks have was measured once.\n"
    )


def markdown(pass_: str, layers: Sequence[Layer]) -> str:
    """The table of one pass and the layers that fare worst in it."""
    lines = [
        f"**{PASSES[pass_]}**",
        "",
        "| layers | torch NCHW | torch channels_last | fastconv | total | geomean | worst layer | of limit |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def add(title: str, weighted: list[tuple[Layer, int]]) -> None:
        if weighted:
            lines.append(_row(title, weighted))

    for network in NETWORKS:
        title = "transposed convolutions" if network == "transposed" else network
        for batch in BATCHES:
            own = [x for x in layers if network in x.counts and x.problem.n == batch and x.problem.is_conv]
            add(f"{title}, batch {batch}", [(x, x.counts[network]) for x in own])
    for layout, name in LAYOUTS.items():
        for batch in BATCHES:
            pools = [x for x in layers if not x.problem.is_conv and (x.problem.layout, x.problem.n) == (layout, batch)]
            add(f"pools of all, {name}, batch {batch}", [(x, sum(x.counts.values())) for x in pools])
    worst = sorted(layers, key=lambda layer: layer.standing)[:WORST]
    far = sum(is_far(layer.round_trip) for layer in layers)
    if far:
        lines += ["", f"{far} of {len(layers)} layers were measured on cores that share no cache."]
    lines += ["", "Worst: " + ", ".join(f"`{x.problem}` {x.standing:.2f}x" for x in worst) + "."]
    return "\n".join(lines) + "\n"
