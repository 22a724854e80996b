"""Whole networks in one command: eager, swapped, planned, and the peers that are installed, in turns.

    python benchmarks/network_table.py [--readme README.md] [--networks resnet18,vgg16] [--peers onnxruntime]

float32, 224x224, batch 1 and 8, random weights, models of torchvision. Results are checked against float64 before they
are timed. Writes networks.json and networks.md under benchmarks/results/<machine>/. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.progress import Progress
from speed_table import FOLDER, insert, one_of

from fastconv.cli.arguments import source
from fastconv.profiling import results
from fastconv.profiling.machine import this_machine
from fastconv.testing import network_speed, ways

MARKS = ("<!-- network-table -->", "<!-- /network-table -->")
NETWORKS = (
    "vgg16",
    "resnet18",
    "resnet50",
    "googlenet",
    "densenet121",
    "fcn_resnet50",
    "alexnet",
    "mobilenet_v2",
    "efficientnet_b0",
)
BATCHES = (1, 8)
SIZE = 224
SECONDS = 2.0


def main() -> int:
    """Runs everything; exit code 1 when a result is wrong (it is named, and left out of the table)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = tuple(ways.PEERS)
    parser.add_argument("--networks", type=one_of(NETWORKS), default=list(NETWORKS), help=f"of {','.join(NETWORKS)}")
    parser.add_argument("--batches", type=one_of(("1", "8")), default=["1", "8"], help="of 1,8")
    parser.add_argument("--peers", type=one_of(peers), default=list(peers), help=f"of {','.join(peers)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timing for each way of each network")
    parser.add_argument("--readme", type=Path, help="a file whose network table is replaced")
    parser.add_argument("--output", type=Path, help="folder of the results instead of benchmarks/results/<machine>")
    options = parser.parse_args()
    machine, measured, wrong = this_machine(), [], 0
    folder = options.output or FOLDER / machine.slug
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(transient=True) as bar:
        task = bar.add_task("measuring", total=len(options.networks) * len(options.batches))
        for name in options.networks:
            for batch in map(int, options.batches):
                bar.update(task, description=f"{name}, batch {batch}")
                model = source(f"torchvision:{name}").model.eval()
                x = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
                try:
                    measured.append(network_speed.measure(name, model, x, options.peers, options.seconds))
                except RuntimeError as error:
                    bar.console.print(f"WRONG {error}", style="red", highlight=False)
                    wrong += 1
                torch.compiler.reset()
                bar.advance(task)
    table = network_speed.markdown(machine, measured)
    content = {"kind": "network_table", "seconds": options.seconds, "machine": machine.as_dict()}
    results.write(folder / "networks.json", content | {"results": [r.as_dict() for r in measured]}, lines="results")
    (folder / "networks.md").write_text(table)
    if options.readme:
        insert(options.readme, table, MARKS)
    print(table)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
