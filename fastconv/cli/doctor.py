"""``fastconv doctor``: what is installed, what this machine can run, and what is wrong. Works without the extension."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from dataclasses import asdict

import torch
import typer
from rich.table import Table

from fastconv.cli import FAILED
from fastconv.cli.screen import console

PACKAGES = ("numpy", "pillow", "safetensors", "typer", "rich", "torchvision", "timm", "triton")


def doctor() -> None:
    """Print versions, instruction sets, threads, GPU tools, settings, the list of kernels, and what is wrong."""
    import fastconv
    from fastconv import _native, settings
    from fastconv.profiling import machine

    facts = machine.this_machine()
    screen = console()
    table = Table(show_header=False, box=None)
    rows = {
        "fastconv": f"{fastconv.__version__} ({facts.commit or 'no git checkout'})",
        "torch": f"{torch.__version__}, {facts.threads} threads",
        "python": f"{platform.python_version()} on {facts.system}",
        "processor": f"{facts.cpu}, {facts.cores} cores, last cache {facts.last_cache >> 20} MiB",
        "extension": _native.load_error or f"built for torch {_native.C.torch_version}",
        "instruction sets": ", ".join(machine.isas()) or "unknown without the extension",
        "GPU": _gpu(),
        "device code": "unknown without the extension" if _native.load_error else _device_code(),
        "triton": _version("triton"),
        "nvcc": shutil.which("nvcc") or "not found",
        "settings": ", ".join(f"{name}={value!r}" for name, value in asdict(settings.current()).items()),
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    screen.print(table, highlight=False)
    if _native.load_error:
        screen.print(f"[red]wrong:[/red] {_native.load_error}", highlight=False)
        raise typer.Exit(FAILED)
    _print_kernels(screen)


def _print_kernels(screen) -> None:
    from fastconv import registry, settings
    from fastconv.kernels import pairs

    table = Table("kernel", "runs on", "allowed here", title="kernels, in order of preference", title_justify="left")
    for kernel in (*registry.kernels(), *pairs.pairs()):
        table.add_row(kernel.name, ", ".join(kernel.devices), settings.current().refuses(kernel) or "yes")
    screen.print(table, highlight=False)


def _gpu() -> str:
    if not torch.cuda.is_available():
        return f"none usable (torch built for CUDA {torch.version.cuda})" if torch.version.cuda else "none: CPU torch"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _device_code() -> str:
    from fastconv.kernels import cuda

    return cuda.device_code()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
