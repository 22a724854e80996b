"""The table of the README in one command: every layer of three networks against the better of torch's two layouts.

    python benchmarks/speed_table.py [--readme README.md]

float32, forward, batch 1 and 8. Both sides are the call a user makes (``fastconv.functional`` and
``torch.nn.functional``): ours in channels_last with the dispatcher's choice, torch's in NCHW and in channels_last with
channels_last weights, in turns in one process. Pools also run in NCHW on both sides. Every result is checked against
float64 first. Writes benchmarks/results/<machine>/conv_fprop.json and conv_fprop.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import Progress

import fastconv.functional
from fastconv import dispatch
from fastconv.problem import Problem
from fastconv.profiling import results, roofline, timer
from fastconv.profiling.machine import Machine, this_machine
from fastconv.profiling.roofline import Ceilings
from fastconv.profiling.timer import Timing
from fastconv.testing import bench, corpus, oracle, peer, summary

NETWORKS = ("resnet50", "mobilenet_v2", "vgg16")
BATCHES = (1, 8)
FOLDER = Path(__file__).parent / "results"
WORST = 8  # layers listed by name
MARKS = ("<!-- speed-table -->", "<!-- /speed-table -->")
LAYOUTS = {"nhwc": "channels_last", "nchw": "NCHW"}


@dataclass(frozen=True)
class Layer:
    """One layer of a network: our time in the problem's layout, torch's in the layouts it was given."""

    network: str
    problem: Problem
    count: int
    kernel: str
    own: Timing
    torch: dict[str, Timing]
    limit: float

    @property
    def torch_best(self) -> float:
        """Seconds of the better torch layout."""
        return min(timing.median for timing in self.torch.values())

    @property
    def standing(self) -> float:
        """Torch's time / ours."""
        return self.torch_best / self.own.median

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"problem": str(self.problem), "standing": self.standing}


def time_layer(network: str, problem: Problem, count: int, ceilings: Ceilings, seconds: float) -> Layer:
    """Checks both sides and times them in turns. RuntimeError when our result is wrong."""
    exact = oracle.ask(problem)
    layouts = ("nhwc", "nchw") if problem.layout == "nhwc" else ("nchw",)
    tensors = {at: bench.operand_sets(exact.tensors, problem.replace(layout=at), cold=False)[0] for at in layouts}
    own = peer.fprop(problem, tensors[problem.layout], fastconv.functional)
    kernel = dispatch.plan(problem).name
    wrong = exact.verdict_of_call(own(), tensors[problem.layout], kernel)
    if wrong:
        raise RuntimeError(f"{kernel} on {problem}: {wrong}")
    calls = {at: peer.fprop(problem, tensors[at], torch.nn.functional) for at in layouts}
    timings = timer.in_turns({"own": own, **calls}, seconds)
    return Layer(network, problem, count, kernel, timings.pop("own"), timings, ceilings.limit(problem))


def work() -> list[tuple[str, Problem, int]]:
    """Everything to be timed: network, problem, multiplicity."""
    jobs = []
    for batch in BATCHES:
        for network in NETWORKS:
            for base, count in corpus.load(network).items():
                problem = base.replace(n=batch)
                jobs.append((network, problem, count))
                if not problem.is_conv:
                    jobs.append((network, problem.replace(layout="nchw"), count))
    return jobs


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _row(title: str, layers: list[Layer]) -> str:
    """One line of the table: totals with multiplicities, then ratios layer by layer."""
    own, best, limit = (
        sum(layer.count * value(layer) for layer in layers)
        for value in (lambda x: x.own.median, lambda x: x.torch_best, lambda x: x.limit)
    )
    fixed = [
        sum(layer.count * layer.torch[at].median for layer in layers) if all(at in x.torch for x in layers) else None
        for at in ("nchw", "nhwc")
    ]
    geomean = summary.geomean((layer.standing, layer.count) for layer in layers)
    worst = min(layer.standing for layer in layers)
    cells = [title, *("-" if t is None else _ms(t) for t in fixed), _ms(own), f"{best / own:.2f}x", f"{geomean:.2f}x"]
    return f"| {' | '.join([*cells, f'{worst:.2f}x', f'{limit / own * 100:.0f} %'])} |"


def markdown(machine: Machine, ceilings: Ceilings, layers: list[Layer]) -> str:
    """The table, the machine it was measured on and the layers that fare worst."""
    lines = [
        f"{machine.cpu}, {machine.threads} threads, {machine.isa}; torch {machine.torch}, commit {machine.commit}, "
        f"{machine.date[:10]}. Limits measured in the same run: {ceilings.flops['f32'] / 1e9:.0f} GFLOP/s, "
        f"{ceilings.memory / 1e9:.0f} GB/s. ms a network's layers take together; ratios are the better torch layout, "
        "layer by layer, over fastconv (channels_last, float32, forward).",
        "",
        "| layers | torch NCHW | torch channels_last | fastconv | total | geomean | worst layer | of limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network in NETWORKS:
        for batch in BATCHES:
            own = [x for x in layers if (x.network, x.problem.n) == (network, batch) and x.problem.is_conv]
            lines.append(_row(f"{network} convolutions, batch {batch}", own))
    for layout, name in LAYOUTS.items():
        for batch in BATCHES:
            pools = [x for x in layers if not x.problem.is_conv and (x.problem.layout, x.problem.n) == (layout, batch)]
            lines.append(_row(f"their pools, {name}, batch {batch}", pools))
    worst = sorted(layers, key=lambda layer: layer.standing)[:WORST]
    lines += ["", "The layers that fare worst: " + ", ".join(f"`{x.problem}` {x.standing:.2f}x" for x in worst) + "."]
    return "\n".join(lines) + "\n"


def insert(readme: Path, table: str) -> None:
    """Puts the table between the marks of a README; ValueError when they are missing."""
    text = readme.read_text()
    pattern = re.compile(f"({re.escape(MARKS[0])}\n).*?({re.escape(MARKS[1])})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{readme} has no place for the table: the marks {MARKS[0]} and {MARKS[1]}.")
    readme.write_text(pattern.sub(lambda match: f"{match[1]}{table}{match[2]}", text))


def main() -> int:
    """Runs everything; exit code 1 when a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="of timing for each side of each layer")
    parser.add_argument("--readme", type=Path, help="a file whose speed table is replaced")
    parser.add_argument("--output", type=Path, help="folder of the results instead of benchmarks/results/<machine>")
    options = parser.parse_args()
    machine, jobs = this_machine(), work()
    layers = []
    with Progress(transient=True) as bar:
        task = bar.add_task("measuring", total=len(jobs))
        ceilings = roofline.ceilings()
        for network, problem, count in jobs:
            bar.update(task, description=f"{network} {problem}")
            try:
                layers.append(time_layer(network, problem, count, ceilings, options.seconds))
            except RuntimeError as error:
                print(error, file=sys.stderr)
                return 1
            bar.advance(task)
    table = markdown(machine, ceilings, layers)
    folder = options.output or FOLDER / machine.slug
    folder.mkdir(parents=True, exist_ok=True)
    content = {"kind": "speed_table", "machine": machine.as_dict(), "ceilings": ceilings.as_dict()}
    results.write(folder / "conv_fprop.json", content | {"layers": [layer.as_dict() for layer in layers]})
    (folder / "conv_fprop.md").write_text(table)
    if options.readme:
        insert(options.readme, table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
