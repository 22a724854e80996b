"""What a number was measured on: without these facts it is not a number."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

import fastconv
from fastconv import settings
from fastconv._native import C, load_error

ASSUMED_LAST_CACHE = 32 << 20  # bytes, where the system does not tell
ROUNDS, TRIES = 2000, 5  # of two threads answering each other
NEAR = 200e-9  # seconds of a round trip within one last cache: 60 to 100 ns there, 350 to 450 between two (Zen 4)


@dataclass(frozen=True)
class Machine:
    """Processor, versions and settings of this process, at one moment.

    cores: CPUs this process may run on. threads: what torch (and so every kernel) uses of them.
    isa: the widest instruction set the CPU kernels use here. last_cache: bytes of the last-level cache.
    commit: of the source tree, with "+" when it has changes, or None outside a git checkout.
    """

    cpu: str
    cores: int
    threads: int
    isa: str
    last_cache: int
    system: str
    python: str
    torch: str
    fastconv: str
    commit: str | None
    date: str

    @property
    def slug(self) -> str:
        """Name of the folder its results are kept in: CPU model and cores."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.cpu} {self.cores} cores".lower()).strip("-")

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def this_machine() -> Machine:
    """The facts of this process, now. Reads /proc and /sys where there are any, and asks git for the commit."""
    return Machine(
        cpu=cpu_model(),
        cores=cores(),
        threads=torch.get_num_threads(),
        isa=widest_isa(),
        last_cache=last_cache(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        fastconv=fastconv.__version__,
        commit=commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def cores() -> int:
    """CPUs this process may run on."""
    return max(_affinity(), torch.get_num_threads()) if threads_are_bound() else _affinity()


def threads_are_bound() -> bool:
    """Whether each thread stays on its CPU, as with OMP_PROC_BIND=true: the first then may not use them all."""
    return _affinity() < torch.get_num_threads()


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def round_trip() -> float | None:
    """Seconds in which two threads of the pool answer each other once, the median of a few; None with one thread.

    Above NEAR they share no cache. The processors of a virtual machine may move apart, and together again, while a
    program runs; then whatever threads hand each other arrives several times as late.
    """
    trips = [] if load_error else [trip for _ in range(TRIES) if (trip := C.round_trip(ROUNDS)) is not None]
    return median(trips) if trips else None


def isas() -> list[str]:
    """Instruction sets this build has kernels for and this CPU can run, narrowest first; none without the extension."""
    return [] if load_error else [isa for isa in settings.ISAS if C.cpu_supports(isa)]


def widest_isa() -> str:
    """The widest instruction set the settings allow here."""
    allowed = settings.ISAS[: settings.ISAS.index(settings.current().isa) + 1]
    return next((isa for isa in reversed(isas()) if isa in allowed), "none")


def cpu_model() -> str:
    """The processor's name, with family and model where the name alone says little."""
    facts: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    if not any(character.isdigit() for character in name) and "cpu family" in facts:
        name += f" family {facts['cpu family']} model {facts['model']}"
    return name


def last_cache() -> int:
    """Bytes of the last-level data cache of the first CPU."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [
        int(text[:-1]) * units[text[-1]]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text().strip()) and text[-1] in units
    ]
    return max(sizes, default=ASSUMED_LAST_CACHE)


def commit() -> str | None:
    """The short commit of the source tree this package runs from, or None."""
    root = Path(fastconv.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
