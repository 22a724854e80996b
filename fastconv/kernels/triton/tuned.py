"""Tiles that a search found better than the model's: read from a file, by bucket, and never searched for here.

A bucket is a kernel, dtype, layout, filter, stride and the powers of two around M (pixels written), C, K (of a group)
and the groups. What a search kept holds for one machine: GPU, driver, torch, triton and fastconv are the key, and
another machine's tiles are a miss. A miss is the model's tile (``configure``). The user's file
(``$XDG_CACHE_HOME/fastconv/tiles.json``) comes before the one in the package (``tiles.json``), whose entries name the
machine and the measurement they come from.

The file is data and nothing of it is executed: a file that is cut, garbled, somebody else's, a link or of another
version is a miss and one warning, and an entry that is no possible tile a miss.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import warnings
from dataclasses import astuple
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from fastconv import settings
from fastconv.kernels.triton.configure import Tile, power
from fastconv.problem import Problem

VERSION = 1  # of the file's form
LOCK_SECONDS = 60  # a writer waits no longer for another
MOST_BYTES = 16 << 20  # of a file
LARGEST_SIDE, MOST_WARPS, MOST_STAGES = 4096, 16, 8
SHIPPED = Path(__file__).with_name("tiles.json")


class Damaged(ValueError):
    """A file that holds no tiles; one sentence."""


def path() -> Path:
    """The user's file."""
    return settings.cache_folder() / "tiles.json"


def bucket(kernel: str, problem: Problem) -> str:
    """The name under which alike problems share a tile, as "conv2d/fprop_igemm_triton bf16nhwc r3s3 u1x1 m.. c.. k..".

    M counts the pixels a kernel writes (dgrad: those of the input).
    """
    h, v = problem.h, problem.w
    rows, columns = (h.size, v.size) if problem.pass_ == "dgrad" else (h.out, v.out)
    m, groups = power(problem.n * rows * columns), problem.groups if problem.is_conv else 1
    c, k = power(problem.c // groups), power(problem.k // groups) if problem.is_conv else 0
    shape = f"r{h.window}s{v.window} u{h.stride}x{v.stride} m{m} c{c} k{k} g{power(groups)}"
    return f"{kernel} {problem.dtype}{problem.layout} {shape}"


@cache
def machine(index: int | None = None) -> str:
    """What measured times hold for: GPU, driver, torch, triton and fastconv, as one line."""
    import triton

    import fastconv

    gpu, driver = torch.cuda.get_device_name(index), torch._C._cuda_getDriverVersion()
    versions = {"driver": driver, "torch": torch.__version__, "triton": triton.__version__}
    versions["fastconv"] = fastconv.__version__
    return ", ".join([gpu, *(f"{name} {version}" for name, version in versions.items())])


@lru_cache(maxsize=4096)
def tile(kernel: str, problem: Problem, device: torch.device) -> Tile | None:
    """The tile kept for the problem's bucket on that device; None where there is none, and on the CPU."""
    if device.type != "cuda":
        return None
    here, name = machine(device.index), bucket(kernel, problem)
    return known(path()).get(here, {}).get(name) or known(SHIPPED).get(here, {}).get(name)


def forget() -> None:
    """Reads the files again when they are next asked."""
    tile.cache_clear()
    known.cache_clear()


@cache
def known(file: Path) -> dict[str, dict[str, Tile]]:
    """Every machine's tiles by bucket; of a damaged file none, with one warning."""
    try:
        content = read(file)
    except Damaged as error:
        warnings.warn(f"{error} The tiles of the written model are used instead.", RuntimeWarning, stacklevel=2)
        return {}
    found = {
        here: {name: _tile(entry) for name, entry in entries.items()} for here, entries in content["machines"].items()
    }
    return {here: {name: tile for name, tile in entries.items() if tile} for here, entries in found.items()}


def read(file: Path) -> dict[str, Any]:
    """The file's content, an empty one where there is no file. Damaged says what is wrong with it."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return {"version": VERSION, "machines": {}}
    except OSError as error:
        raise Damaged(f"The file of tuned tiles {file} cannot be read: {error.strerror}.") from None
    about = os.fstat(descriptor)
    others = about.st_uid not in (os.geteuid(), 0) and file != SHIPPED
    if others or not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        what = "belongs to another user" if others else "is no ordinary file"
        raise Damaged(f"The file of tuned tiles {file} {what}.")
    with os.fdopen(descriptor, "rb") as stream:
        text = stream.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise Damaged(f"The file of tuned tiles {file} is larger than {MOST_BYTES} bytes.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise Damaged(f"The file of tuned tiles {file} is no JSON.") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise Damaged(f"The file of tuned tiles {file} has version {version!r}, and this library reads {VERSION}.")
    machines = content.get("machines")
    if not isinstance(machines, dict) or not all(isinstance(entries, dict) for entries in machines.values()):
        raise Damaged(f"The file of tuned tiles {file} has no machines with entries.")
    return content


def _tile(entry: Any) -> Tile | None:
    """The entry's tile, or None when no kernel could be built for it."""
    values = entry.get("tile") if isinstance(entry, dict) else None
    if not isinstance(values, list) or len(values) != len(astuple(Tile(1, 1, 1))):
        return None
    if not all(type(value) is int and value > 0 for value in values):
        return None
    *powers, stages = values
    sides, warps = powers[:-1], powers[-1]
    possible = max(sides) <= LARGEST_SIDE and warps <= MOST_WARPS and stages <= MOST_STAGES
    return Tile(*values) if possible and all(power(value) == value for value in powers) else None


def keep(file: Path, here: str, entries: dict[str, dict[str, Any]]) -> None:
    """Adds entries of one machine to the file: under a lock, so that no writer's are lost, and by replacing the file,
    so that a reader never sees a half. A damaged file is replaced. TimeoutError when another writer does not finish.
    """
    from filelock import FileLock, Timeout

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = file.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=LOCK_SECONDS):
            try:
                content = read(file)
            except Damaged:
                content = {"version": VERSION, "machines": {}}
            content["machines"].setdefault(here, {}).update(entries)
            _replace(file, json.dumps(content, indent=1, sort_keys=True) + "\n")
    except Timeout:
        raise TimeoutError(f"Another process has held {lock} for more than {LOCK_SECONDS} s.") from None
    forget()


def _replace(file: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
