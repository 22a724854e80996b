"""Result files are whole or absent."""

from __future__ import annotations

import json

import pytest

from fastconv.profiling import results


def test_written_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    results.write(path, {"kind": "bench"})
    assert json.loads(path.read_text()) == {"schema": results.SCHEMA, "kind": "bench"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_long_lists_take_one_line_an_element(tmp_path):
    rows = [{"problem": "a", "own": 1.5}, {"problem": "b\n", "own": {"c": [1, 2]}}]
    results.write(tmp_path / "a.json", {"rows": rows, "kind": "speed_table"}, lines="rows")
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"schema": results.SCHEMA, "kind": "speed_table", "rows": rows}
    assert [json.loads(line.rstrip(",")) for line in text.splitlines() if line.startswith("  ")] == rows


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    class Interrupts(dict):
        def items(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.write(path, {"a": Interrupts(x=1)})
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
