"""How fast every algorithm is along batch, map and channels, one at a time, beside torch: figures, plots and cliffs.

    python benchmarks/sweep.py [--passes fprop,dgrad,wgrad] [--threads 1,2] [--seconds 0.03]

GFLOP/s of the direct count; the centre is n1 c64 k64 28x28, 3x3, 1x1, grouped and depthwise, and a handful of products
for the kernel that takes no more. Writes sweep_<pass>.json and sweep_<pass>.png under benchmarks/results/<machine>/ and
prints every cliff: a point below 0.6 of both its neighbours. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.progress import Progress

from fastconv.profiling import results
from fastconv.profiling.machine import this_machine
from fastconv.testing import sweep
from fastconv.testing.sweep import Cliff, Point

FOLDER = Path(__file__).parent / "results"
PASSES = ("fprop", "dgrad", "wgrad")
SECONDS = 0.03
INCHES = 5, 3.5  # of one plot


def numbers(text: str) -> list[int]:
    """The type of an argument: comma-separated positive integers."""
    values = [int(word) for word in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{min(values)} is not positive")
    return values


def words(text: str) -> list[str]:
    """The type of an argument: comma-separated passes."""
    unknown = [word for word in text.split(",") if word not in PASSES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(PASSES)}")
    return text.split(",")


def plot(points: list[Point], cliffs: list[Cliff], title: str, path: Path) -> None:
    """A row for each family, a column for each axis; a colour an algorithm, solid with the most threads, dotted with
    fewer; cliffs are circled.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    families, axes = list(sweep.FAMILIES), list(sweep.AXES)
    size = INCHES[0] * len(axes), INCHES[1] * len(families)
    figure, grid = pyplot.subplots(len(families), len(axes), figsize=size, squeeze=False)
    colours = {who: f"C{i}" for i, who in enumerate((*sweep.algorithms(), sweep.TORCH))}
    most = max(point.threads for point in points)
    fallen = {(c.family, c.axis, c.threads, c.who, c.value) for c in cliffs}
    for first, who, rated in sweep.series(points):
        panel = grid[families.index(first.family)][axes.index(first.axis)]
        x, y = [point.value for point, _ in rated], [rate / 1e9 for _, rate in rated]
        solid = first.threads == most
        label = who if solid else None
        panel.plot(x, y, "-" if solid else ":", color=colours[who], label=label, marker=".", markersize=3)
        circled = [(a, b) for a, b in zip(x, y, strict=True) if (*_line(first), who, a) in fallen]
        panel.plot(*zip(*circled, strict=True), "o", color="red", fillstyle="none") if circled else None
    for family, row in zip(families, grid, strict=True):
        for axis, panel in zip(axes, row, strict=True):
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.set(yscale="log", title=f"{family} along {axis}", xlabel=axis, ylabel="GFLOP/s")
            panel.grid(alpha=0.3)
            if panel.has_data():
                panel.legend(fontsize="x-small")
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _line(point: Point) -> tuple[str, str, int]:
    return point.family, point.axis, point.threads


def main() -> int:
    """Runs everything; exit code 1 when a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=words, default=["fprop"], help=f"of {','.join(PASSES)}")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="numbers of threads")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timing for each side of each point")
    parser.add_argument("--output", type=Path, help="folder of the results instead of benchmarks/results/<machine>")
    options = parser.parse_args()
    machine = this_machine()
    folder = options.output or FOLDER / machine.slug
    folder.mkdir(parents=True, exist_ok=True)
    for pass_ in options.passes:
        work, points = list(sweep.problems(pass_)), []
        with Progress(transient=True) as bar:
            task = bar.add_task("measuring", total=len(work))
            for family, axis, value, problem in work:
                bar.update(task, description=str(problem))
                try:
                    rates = sweep.rates(problem, options.threads, options.seconds)
                except RuntimeError as error:
                    print(error, file=sys.stderr)
                    return 1
                points += [Point(family, axis, value, threads, problem, rates[threads]) for threads in options.threads]
                bar.advance(task)
        cliffs = sweep.cliffs(points)
        content = {"kind": "sweep", "pass": pass_, "seconds": options.seconds, "machine": machine.as_dict()}
        content |= {"cliffs": [str(cliff) for cliff in cliffs], "points": [point.as_dict() for point in points]}
        results.write(folder / f"sweep_{pass_}.json", content, lines="points")
        title = f"{pass_}, {machine.cpu}, {machine.isa}, torch {machine.torch}, {machine.commit}, {machine.date[:10]}"
        plot(points, cliffs, title, folder / f"sweep_{pass_}.png")
        print(f"{pass_}: {len(points)} points, {len(cliffs)} cliffs", *cliffs, sep="\n  ")
    return 0


if __name__ == "__main__":
    from binding import bind_threads  # lies beside this script

    bind_threads()
    sys.exit(main())
