"""What has been found so far, in one JSON file that is written after every unit: an interruption loses one unit."""

from __future__ import annotations

import json
from pathlib import Path

from fastconv.profiling import results

FILE = "gpu.json"
OUTCOMES = ("ok", "wrong", "error", "interrupted", "skipped")


def load(folder: Path) -> dict:
    """The state a folder holds, or a new one. ValueError for a file of another kind."""
    path = folder / FILE
    if not path.exists():
        return {"kind": "gpu", "machine": {}, "units": {}}
    state = json.loads(path.read_text())
    if state.get("kind") != "gpu":
        raise ValueError(f"{path} holds results of kind {state.get('kind')!r}, not of GPU kernels.")
    state["units"] = {unit.pop("unit"): unit for unit in state["units"]}
    return state


def save(folder: Path, state: dict) -> None:
    """Writes it whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    units = [{"unit": name} | found for name, found in state["units"].items()]
    results.write(folder / FILE, {key: state[key] for key in ("kind", "machine")} | {"units": units}, lines="units")


def record(state: dict, name: str, sources: str, found: dict) -> None:
    """Puts one unit's result into the state; it counts the tries with the same sources."""
    if found.get("outcome") not in OUTCOMES:
        raise ValueError(f"The outcome of {name} is {found.get('outcome')!r}, which is none of {', '.join(OUTCOMES)}.")
    before = state["units"].get(name, {})
    tries = before.get("tries", 0) + 1 if before.get("sources") == sources else 1
    state["units"][name] = {"sources": sources, "tries": tries} | found
