"""Tables of a state: what is proven, what is wrong, how fast it is. Needs no GPU."""

from __future__ import annotations

from collections import defaultdict

from benchmarks.gpu.plan import Unit
from benchmarks.gpu.race import PEER
from fastconv.problem import Problem
from fastconv.testing import proof

COMPILED = "torch.compile"


def limit(problem: Problem, found: dict, limits: dict[str, float]) -> float | None:
    """The least microseconds the problem can take on this device; None until the limits have been measured."""
    rate = limits.get(problem.dtype)
    if rate is None or "copy" not in limits:
        return None
    return max(found["flops"] / rate, found["bytes"] / limits["copy"]) * 1e6


def measured_limits(units: dict[str, dict]) -> dict[str, float]:
    """Rates by name: "copy" in bytes a second, dtypes in FLOP/s."""
    return {
        name.removeprefix("limits/"): found["rate"]
        for name, found in units.items()
        if name.startswith("limits/") and found["outcome"] == "ok"
    }


def markdown(state: dict, all_units: list[Unit], sources: str) -> str:
    """Everything a reader wants of a state, the most important first."""
    units = state["units"]
    done = [u for u in all_units if units.get(u.name, {}).get("sources") == sources]
    machine = state["machine"]
    lines = [f"# {machine.get('gpu', 'No GPU yet')}", ""]
    facts = ", ".join(f"{key} {value}" for key, value in machine.items() if key != "gpu")
    lines += [f"{facts}.", ""] if facts else []
    lines += [f"{len(done)} of {len(all_units)} units have run with these sources ({sources}).", ""]
    lines += _broken(units) + _limits(units) + ["## Proven", "", proof.table(units), ""]
    lines += _times(units) + _functions(units)
    return "\n".join(lines)


def _broken(units: dict[str, dict]) -> list[str]:
    bad = [(name, found) for name, found in units.items() if found["outcome"] not in ("ok", "skipped")]
    if not bad:
        return []
    rows = [f"- `{name}`: {found['outcome']}. {_first_line(found.get('reason', ''))}" for name, found in sorted(bad)]
    return ["## Not well", "", *rows, ""]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else ""


def _limits(units: dict[str, dict]) -> list[str]:
    rates = measured_limits(units)
    if not rates:
        return []
    said = [f"copy {rates['copy'] / 1e12:.2f} TB/s"] if "copy" in rates else []
    said += [f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in rates.items() if name != "copy"]
    return [f"Limits, measured: {', '.join(said)}.", ""]


def _times(units: dict[str, dict]) -> list[str]:
    """One row a problem: its limit, PyTorch, what compilation makes of it, and our kernels, the fastest in front."""
    rows, limits = defaultdict(dict), measured_limits(units)
    for name, found in units.items():
        kind, what = name.split("/", 1)
        if kind in ("time", "compile") and "rows" in found:
            rows[what] |= {"flops": found.get("flops"), "bytes": found.get("bytes")} if kind == "time" else {}
            rows[what].setdefault("rows", {}).update(found["rows"])
    if not rows:
        return []
    lines = ["## Times", "", "us; of the limit; PyTorch's time over ours.", ""]
    lines += ["| problem | limit | PyTorch | torch.compile | best of ours | of limit | vs PyTorch | others |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [_time_row(text, found, limits) for text, found in rows.items() if found.get("flops")]
    return [*lines, ""]


def _functions(units: dict[str, dict]) -> list[str]:
    """One row a function of several ops, forwards and as a step of training."""
    rows = []
    for name, found in units.items():
        if name.startswith("function/") and "times" in found:
            cells = [f"`{name.removeprefix('function/')}`"]
            for kind in ("forward", "step"):
                us = {who: timed["us"] for who, timed in found["times"].get(kind, {}).items()}
                own = us.get("fastconv")
                cells += [_us(us.get(PEER)), _us(own), _ratio(us.get(PEER), own) if own else ""]
            rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return []
    lines = ["## Functions", "", "us, beside PyTorch's ops one after the other; a step is forwards and backwards.", ""]
    lines += ["| function | PyTorch | ours | vs PyTorch | PyTorch, a step | ours | vs PyTorch |"]
    return [*lines, "|---|---|---|---|---|---|---|", *rows, ""]


def _time_row(text: str, found: dict, limits: dict[str, float]) -> str:
    timed = {name: row["us"] for name, row in found["rows"].items() if "us" in row}
    own = sorted((us, name) for name, us in timed.items() if name not in (PEER, COMPILED))
    least = limit(Problem(text), found, limits)
    cells = [f"`{text}`", _us(least), _us(timed.get(PEER)), _us(timed.get(COMPILED))]
    if own:
        us, name = own[0]
        cells += [f"{us:.1f} {name}", f"{least / us:.0%}" if least else "", _ratio(timed.get(PEER), us)]
    else:
        cells += ["", "", ""]
    cells.append(", ".join(f"{name} {us:.1f}" for us, name in own[1:]))
    return f"| {' | '.join(cells)} |"


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _ratio(peer: float | None, own: float) -> str:
    return "" if peer is None else f"{peer / own:.2f}x"
