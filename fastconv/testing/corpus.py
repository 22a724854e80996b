"""Problem corpora: text files of one problem a line, with how often it occurs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fastconv.problem import Problem

BYTE_TAPS = 255  # windows of a max pool up to this many elements keep their maxima's places in one byte

FOLDER = Path(__file__).parent / "problems"


def names() -> list[str]:
    """Every corpus that ships with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def load(name_or_path: str) -> Counter[Problem]:
    """Problems and multiplicities of a corpus by name, or of a file.

    A line is ``[COUNTx ]PROBLEM``; "#" starts a comment. Raises FileNotFoundError for an unknown name and ValueError
    with file and line number for a line that cannot be read.
    """
    path = FOLDER / f"{name_or_path}.txt"
    if not path.exists():
        path = Path(name_or_path)
    if not path.exists():
        raise FileNotFoundError(f"There is no corpus {name_or_path!r}; the corpora are {', '.join(names())}.")
    problems: Counter[Problem] = Counter()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            problems[Problem(words[-1])] += _multiplicity(words[:-1])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return problems


def backward(problem: Problem, pass_: str) -> Problem | None:
    """The gradient that training a layer of this forward problem asks for; None for a pool's weights, it has none."""
    if problem.is_conv:
        return problem.replace(
            pass_=pass_, bias=False, residual=False, activation="none", alpha=0.0, out_channels=0, out_offset=0
        )
    if pass_ == "wgrad":
        return None
    return trained(problem).replace(pass_=pass_)


def trained(problem: Problem) -> Problem:
    """The forward problem when a gradient will follow: a max pool then keeps the places of its maxima."""
    if "max" not in problem.op or problem.index != "none":
        return problem
    bytes_do = problem.op == "maxpool2d" and problem.h.window * problem.w.window <= BYTE_TAPS
    return problem.replace(index="u8" if bytes_do else "i64")


def _multiplicity(words: list[str]) -> int:
    if not words:
        return 1
    if len(words) > 1 or not words[0].removesuffix("x").isdecimal():
        raise ValueError(f"a line is [COUNTx ]PROBLEM, but before the problem stands {' '.join(words)!r}.")
    return int(words[0].removesuffix("x"))


def dump(problems: Counter[Problem]) -> str:
    """The lines :func:`load` reads back, in the counter's order."""
    return "".join(f"{f'{count}x ' if count != 1 else ''}{problem}\n" for problem, count in problems.items())
