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
