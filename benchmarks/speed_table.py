"""The tables of the README in one command: every layer of ten networks, forwards and backwards, against torch.

    python benchmarks/speed_table.py [--readme README.md] [--passes fprop,dgrad] [--networks resnet50,vgg16]

float32, batch 1 and 8; what is compared, and how, stands in fastconv/testing/speed.py. Writes conv_<pass>.json and
conv_<pass>.md under benchmarks/results/<machine>/ as each pass ends. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from rich.progress import Progress

from fastconv.profiling import results, roofline
from fastconv.profiling.machine import this_machine
from fastconv.testing import speed

FOLDER = Path(__file__).parent / "results"
MARKS = ("<!-- speed-table -->", "<!-- /speed-table -->")
SECONDS = 0.05
PATIENCE = 600  # seconds


def insert(readme: Path, tables: str, marks: tuple[str, str] = MARKS) -> None:
    """Puts the tables between the marks of a README; ValueError when they are missing."""
    text = readme.read_text()
    pattern = re.compile(f"({re.escape(marks[0])}\n).*?({re.escape(marks[1])})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{readme} has no place for the table: the marks {marks[0]} and {marks[1]}.")
    readme.write_text(pattern.sub(lambda match: f"{match[1]}{tables}{match[2]}", text))


def one_of(known: tuple[str, ...]):
    """The type of an argument: a comma-separated list of known words, kept in their order."""

    def words(text: str) -> list[str]:
        given = text.split(",")
        unknown = [word for word in given if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return [word for word in known if word in given]

    return words


def main() -> int:
    """Runs everything; exit code 1 when a result is wrong (it is named, and left out of the tables)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    passes, networks = tuple(speed.PASSES), speed.NETWORKS
    parser.add_argument("--passes", type=one_of(passes), default=list(passes), help=f"of {','.join(passes)}")
    parser.add_argument("--networks", type=one_of(networks), default=list(networks), help=f"of {','.join(networks)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timing for each side of each layer")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds to wait, all in all, for cores that share a cache"
    )
    parser.add_argument("--readme", type=Path, help="a file whose speed tables are replaced")
    parser.add_argument("--output", type=Path, help="folder of the results instead of benchmarks/results/<machine>")
    options = parser.parse_args()
    machine, jobs = this_machine(), {pass_: speed.work(pass_, options.networks) for pass_ in options.passes}
    folder = options.output or FOLDER / machine.slug
    folder.mkdir(parents=True, exist_ok=True)
    tables, wrong, patience = [], 0, speed.Patience(options.patience)
    with Progress(transient=True) as bar:
        task = bar.add_task("measuring", total=sum(map(len, jobs.values())))
        ceilings = roofline.ceilings()
        heading = speed.heading(machine, ceilings)
        for pass_, work in jobs.items():
            layers = []
            for job, counts in work.items():
                bar.update(task, description=f"{pass_} {job.problem}")
                try:
                    layers.append(speed.time_job(job, counts, ceilings, options.seconds, patience))
                except RuntimeError as error:
                    bar.console.print(f"WRONG {error}", style="red", highlight=False)
                    wrong += 1
                bar.advance(task)
            table = speed.markdown(pass_, layers)
            content = {"kind": "speed_table", "pass": pass_, "seconds": options.seconds}
            content |= {"machine": machine.as_dict(), "ceilings": ceilings.as_dict()}
            content |= {"layers": [layer.as_dict() for layer in layers]}
            results.write(folder / f"conv_{pass_}.json", content, lines="layers")
            (folder / f"conv_{pass_}.md").write_text(f"{heading}\n{table}")
            tables.append(table)
    everything = "\n".join([heading, *tables])
    if options.readme:
        insert(options.readme, everything)
    print(everything)
    return 1 if wrong else 0


if __name__ == "__main__":
    from binding import bind_threads  # lies beside this script

    bind_threads()
    sys.exit(main())
