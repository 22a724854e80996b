"""Result files: written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

SCHEMA = 1


def write(path: str | Path, content: dict[str, Any], *, lines: str | None = None) -> None:
    """Writes JSON through a temporary file in the same folder and one rename; an interruption leaves no half file.

    lines: the key of a list whose elements take one line each, behind everything else, so that long lists stay short.
    """
    path = Path(path)
    text = json.dumps({"schema": SCHEMA} | {key: value for key, value in content.items() if key != lines}, indent=1)
    if lines is not None:
        rows = ",\n".join(f"  {json.dumps(row)}" for row in content[lines])
        text = f"{text.removesuffix('}').rstrip()},\n {json.dumps(lines)}: [\n{rows}\n ]\n}}"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text + "\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
