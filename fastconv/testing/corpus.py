"""Problem corpora: text files of one problem a line, with how often it occurs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fastconv.problem import Problem

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


def _multiplicity(words: list[str]) -> int:
    if not words:
        return 1
    if len(words) > 1 or not words[0].removesuffix("x").isdecimal():
        raise ValueError(f"a line is [COUNTx ]PROBLEM, but before the problem stands {' '.join(words)!r}.")
    return int(words[0].removesuffix("x"))


def dump(problems: Counter[Problem]) -> str:
    """The lines :func:`load` reads back, in the counter's order."""
    return "".join(f"{f'{count}x ' if count != 1 else ''}{problem}\n" for problem, count in problems.items())
