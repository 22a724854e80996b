"""The few switches of the library, and the environment variables that set them at start.

================================  ==========================================================================
``FASTCONV_KERNEL``               like ``config(kernel=...)``
``FASTCONV_ISA``                  like ``config(isa=...)``
``FASTCONV_KEEP_MEMORY``          like ``config(keep_memory=...)``: 0 or 1
================================  ==========================================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastconv.registry import Kernel

ISAS = ("scalar", "neon", "avx2", "avx512")


@dataclass(frozen=True)
class Settings:
    """One consistent state of every switch.

    kernel: shell-style pattern a chosen kernel's name must match ("conv2d/fprop_igemm*"); several patterns are
        separated by commas, and a pattern that starts with "-" forbids what it matches.
    strict: raise instead of choosing a kernel outside the patterns (PyTorch's rows and the reference included).
    isa: the widest instruction set the CPU kernels may use.
    winograd: Winograd kernels may be chosen for 3x3 and 5x5 convolutions of stride 1, dilated or not. F(4x4,3x3) rounds
        two to three times as coarsely as direct summation, and a NaN or infinity may reach every output of its tile of
        2x2 or 4x4. ``strict`` leaves them out as well, unless a pattern names them.
    deterministic: only kernels whose result has the same bits in every run and for every number of threads.
    keep_memory: freed memory of large results and workspaces serves the next ones (``fastconv.memory``).
    """

    kernel: str = "*"
    strict: bool = False
    isa: str = "avx512"
    winograd: bool = True
    deterministic: bool = False
    keep_memory: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default):
                expected = type(field.default).__name__
                raise TypeError(f"config: {field.name} must be a {expected}, but is {value!r}.")
        if self.isa not in ISAS:
            raise ValueError(f"config: isa must be one of {', '.join(ISAS)}, but is {self.isa!r}.")
        if not re.fullmatch(r"[-\w/*?,\[\]]+", self.kernel):
            raise ValueError(f"config: kernel must be a pattern such as 'conv2d/fprop_igemm*', but is {self.kernel!r}.")

    def refuses(self, kernel: Kernel) -> str | None:
        """The sentence that keeps a kernel from being chosen under these settings, or None."""
        if self.deterministic and not kernel.deterministic:
            return "config(deterministic=True): its result may depend on the number of threads."
        wanted = [p for p in self.kernel.split(",") if not p.startswith("-")] or ["*"]
        forbidden = [p[1:] for p in self.kernel.split(",") if p.startswith("-")]
        if any(fnmatchcase(kernel.name, pattern) for pattern in forbidden):
            return f"config(kernel={self.kernel!r}) forbids it."
        if not any(fnmatchcase(kernel.name, pattern) for pattern in wanted):
            return f"config(kernel={self.kernel!r}) does not name it."
        if kernel.spreads_nan and not self.winograd:
            return "config(winograd=False): only kernels that sum directly."
        if kernel.spreads_nan and self.strict and not any("winograd" in pattern for pattern in wanted):
            return "config(strict=True): only kernels that sum directly, unless a pattern names winograd."
        return None


class VariableError(ValueError):
    """An environment variable holds something that is no value of its switch."""


def check_environment(environment: Mapping[str, str]) -> Settings:
    """The settings that environment variables ask for; VariableError names the one that is wrong."""
    known = {"FASTCONV_KERNEL": "kernel", "FASTCONV_ISA": "isa", "FASTCONV_KEEP_MEMORY": "keep_memory"}
    chosen: dict[str, Any] = {
        name: environment[variable] for variable, name in known.items() if variable in environment
    }
    if (keep := chosen.get("keep_memory")) is not None:
        if keep not in ("0", "1"):
            raise VariableError(f"The environment variable FASTCONV_KEEP_MEMORY must be 0 or 1, but is {keep!r}.")
        chosen["keep_memory"] = keep == "1"
    for variable, name in known.items():
        if name in chosen:
            try:
                Settings(**{name: chosen[name]})
                if name == "kernel":
                    _check_patterns(chosen[name])
            except ValueError as error:
                raise VariableError(f"The environment variable {variable} is wrong. {error}") from None
    return Settings(**chosen)


_current: Settings | None = None  # until the first use, so that a wrong variable does not break the import


def current() -> Settings:
    """The settings in force in this process. VariableError, a ValueError, when an environment variable is wrong."""
    global _current
    if _current is None:
        _apply(check_environment(os.environ))
    return _current


def _apply(settings: Settings) -> None:
    global _current
    from fastconv._native import C, load_error

    _current = settings
    if load_error is None:
        C.keep_memory(settings.keep_memory)


def _install(settings: Settings) -> None:
    from fastconv import dispatch

    _apply(settings)
    dispatch.forget()


class config:
    """Changes switches for the whole process: at once, and back again when used as a context manager.

    >>> fastconv.config(strict=True)                       # from here on
    >>> with fastconv.config(kernel="conv2d/*_reference*"):  # for this block
    ...     model(x)

    Raises TypeError for an unknown switch or a value of the wrong type, ValueError for a kernel pattern that matches no
    kernel or an unknown instruction set.
    """

    def __init__(self, **changes: Any):
        unknown = changes.keys() - {field.name for field in fields(Settings)}
        if unknown:
            names = ", ".join(field.name for field in fields(Settings))
            raise TypeError(f"config: unknown switch {sorted(unknown)[0]!r}; the switches are {names}.")
        self._before = current()
        settings = replace(self._before, **changes)
        if "kernel" in changes:
            _check_patterns(settings.kernel)
        _install(settings)

    def __enter__(self) -> Settings:
        return current()

    def __exit__(self, *_: object) -> None:
        _install(self._before)


def _check_patterns(patterns: str) -> None:
    from fastconv import registry

    names = registry.names()
    for pattern in patterns.split(","):
        if not any(fnmatchcase(name, pattern.removeprefix("-")) for name in names):
            raise ValueError(f"config: no kernel matches {pattern!r}; 'fastconv doctor' lists the kernels.")


def cache_folder() -> Path:
    """Where the library keeps files of this user: what has been measured on this machine."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # As the directory's specification says, a relative path does not count.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fastconv"
