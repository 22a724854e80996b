"""``python -m benchmarks.gpu`` as far as it needs no GPU: units, what is done again, workers, files and tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import crew, plan, report, sanitize, state, worker
from benchmarks.gpu.plan import Unit
from fastconv.kernels import pairs
from fastconv.problem import Problem
from fastconv.testing import emulator, gpu_cases, proof

ROOT = Path(__file__).parents[2]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="There is a GPU here.")

# A worker for tests: a unit's kind says what becomes of it.
PRETENDER = """
import sys, time
for line in sys.stdin:
    kind = line.split("/")[0]
    if kind == "crash": sys.exit(7)
    if kind == "hang": time.sleep(60)
    print("noise")
    if kind == "broken": print('RESULT {"outcome": "error", "broken": true}', flush=True)
    else: print('RESULT {"outcome": "ok"}', flush=True)
"""


# --- what there is to do --------------------------------------------------------------------------------------------


def test_every_kernel_is_started_proven_and_emulated():
    names = [unit.name for unit in plan.units()]
    assert len(names) == len(set(names))
    for kernel in plan.kernels():
        assert f"smoke/{kernel.name}" in names
        assert all(f"prove/{kernel.name}/{dtype}" in names for dtype in gpu_cases.dtypes(kernel))
    assert {f"pair/{pair.name}" for pair in pairs.pairs()} == {n for n in names if n.startswith("pair/")}
    assert {f"emulate/{k.name}" for k in emulator.rows()} == {n for n in names if n.startswith("emulate/")}
    assert all(f"sanitize/{tool}" in names for tool in ("memcheck", "racecheck", "synccheck", "initcheck"))


def test_the_most_valuable_comes_first():
    kinds = list(dict.fromkeys(unit.kind for unit in plan.units()))
    assert kinds == ["smoke", "limits", "behave", "time", "pair", "function", "sanitize", "prove", "emulate", "compile"]
    first = [unit for unit in plan.units() if unit.kind in ("smoke", "limits", "behave")]
    together = sum(unit.seconds / (1 if unit.alone else command.MOST_JOBS) for unit in first)
    assert together < command.SECONDS / 4
    assert all(unit.seconds <= command.SECONDS for unit in plan.units())


def test_what_is_timed_is_alone():
    assert all(unit.alone == (unit.kind not in ("smoke", "prove", "emulate", "pair")) for unit in plan.units())


def test_every_layer_of_every_network_is_timed_forwards_and_backwards():
    timed = {unit.what for unit in plan.units() if unit.kind == "time"}
    for text in ("n256c64h56w56_k64r3s3_p1_bf16nhwc", "n256c64h56w56_k64r3s3_p1_bf16nhwc_wgrad"):
        assert text in timed
    assert "n256c3h224w224_k64r7s7_u2_p3_bf16nhwc_wgrad" in timed
    assert "n256c3h224w224_k64r7s7_u2_p3_bf16nhwc_dgrad" not in timed
    assert all(str(Problem(text)) == text for text in timed)


def test_what_sources_change_is_done_again(tmp_path):
    for folder in plan.SOURCES:
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "csrc/cuda/a.cu").write_text("one")
    (tmp_path / "csrc/cuda/a.md").write_text("one")
    first = plan.digest(tmp_path)
    (tmp_path / "csrc/cuda/a.md").write_text("two")
    assert plan.digest(tmp_path) == first
    (tmp_path / "csrc/cuda/a.cu").write_text("two")
    assert plan.digest(tmp_path) != first


def test_it_goes_on_where_it_stopped():
    units = [Unit(name, 1) for name in ("a/1", "a/2", "b/1", "b/2", "c/1")]
    done = {"sources": "now", "outcome": "ok"}
    results = {"a/1": done, "a/2": done | {"outcome": "interrupted", "tries": 1}, "b/1": done | {"sources": "then"}}
    results |= {"b/2": done | {"outcome": "wrong"}}
    assert [unit.name for unit in plan.pending(units, results, "now")] == ["b/1", "c/1", "a/2"]
    results["a/2"]["tries"] = 2
    assert [unit.name for unit in plan.pending(units, results, "now")] == ["b/1", "c/1"]


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_state_is_read_back_as_it_was_written(tmp_path):
    found = state.load(tmp_path)
    state.record(found, "smoke/x", "now", {"outcome": "interrupted", "seconds": 1.5})
    state.record(found, "smoke/x", "now", {"outcome": "ok", "seconds": 2.5})
    state.record(found, "time/y", "now", {"outcome": "ok", "rows": {"pytorch": {"us": 3.0}}})
    state.save(tmp_path / "new", found)
    again = state.load(tmp_path / "new")
    assert again["units"] == found["units"]
    assert again["units"]["smoke/x"] == {"sources": "now", "tries": 2, "outcome": "ok", "seconds": 2.5}


def test_another_kind_of_file_is_not_overwritten(tmp_path):
    (tmp_path / state.FILE).write_text(json.dumps({"kind": "sweep"}))
    with pytest.raises(ValueError, match="of kind 'sweep', not of GPU kernels"):
        state.load(tmp_path)


def test_an_outcome_is_one_of_the_known():
    with pytest.raises(ValueError, match="is 'fine', which is none of"):
        state.record(state.load(Path("nowhere")), "smoke/x", "now", {"outcome": "fine"})


# --- workers ----------------------------------------------------------------------------------------------------------


def run(names: list[str], jobs: int = 2, seconds: float = 30, alone: str = "") -> dict[str, dict]:
    units = [Unit(name, 1, alone=name.startswith(alone or "-")) for name in names]
    found = {}
    pretender = (sys.executable, "-c", PRETENDER)
    crew.carry_out(units, time.monotonic() + seconds, jobs, lambda u, result: found.update({u.name: result}), pretender)
    return found


def test_a_crash_costs_one_unit():
    found = run(["fine/1", "crash/2", "fine/3", "broken/4", "fine/5"], jobs=1)
    assert [result["outcome"] for result in found.values()] == ["ok", "error", "ok", "error", "ok"]
    assert found["crash/2"]["reason"] == "Its process ended with status 7."
    assert "broken" not in found["broken/4"]


def test_a_hang_is_ended(monkeypatch):
    monkeypatch.setattr(crew, "START", 0)
    monkeypatch.setattr(crew, "PATIENCE", 1)
    found = run(["hang/1", "fine/2"], jobs=1)
    assert found["hang/1"]["outcome"] == "interrupted" and found["fine/2"]["outcome"] == "ok"


def test_nothing_is_begun_that_would_not_end_in_time():
    assert run(["fine/1"], seconds=0.5) == {}


def test_units_that_run_alone_wait_for_the_others():
    names = ["a/1", "a/2", "lone/1", "lone/2", "a/3"]
    groups = crew.phases(Unit(name, 1, alone=name.startswith("lone")) for name in names)
    assert [[unit.name for unit in group] for group in groups] == [names[:2], names[2:4], names[4:]]
    assert list(run(names, alone="lone"))[2:4] == ["lone/1", "lone/2"]


def test_an_error_is_a_result():
    found = worker.found("time/nonsense")
    assert found["outcome"] == "error" and found["reason"].startswith("ValueError")
    assert not found["broken"]
    assert worker.is_sticky("RuntimeError: CUDA: an illegal memory access was encountered.")


# --- reading what tools say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "count"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0),
        ("========= ERROR SUMMARY: 1 error\n", 1),
        ("========= ERROR SUMMARY: 3 errors\n========= ERROR SUMMARY: 2 errors\n", 5),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0),
        ("========= RACECHECK SUMMARY: 4 hazards displayed (3 errors, 1 warning)\n", 3),
        ("========= Error: Device not supported\n", None),
    ],
)
def test_a_sanitizers_summary_is_counted(log, count):
    assert sanitize.reports(log) == count


def test_without_the_sanitizer_the_unit_says_so(monkeypatch):
    monkeypatch.setattr(sanitize, "program", lambda: None)
    assert sanitize.check_tool("memcheck") == {"outcome": "error", "reason": "compute-sanitizer is not installed."}


# --- tables ---------------------------------------------------------------------------------------------------------


def ok(**facts) -> dict:
    return {"sources": "now", "outcome": "ok", **facts}


def test_the_table_of_times():
    text = "n256c64h56w56_k64r3s3_p1_bf16nhwc"
    problem = Problem(text)
    rows = {"pytorch": {"us": 200.0}, "x_sm80": {"us": 100.0}, "y_simt": {"us": 400.0}, "z_triton": {"refused": "No."}}
    units = {
        "limits/copy": ok(rate=4.0e12),
        "limits/bf16": ok(rate=8.0e14),
        f"time/{text}": ok(rows=rows, flops=problem.flops, bytes=problem.bytes),
        f"compile/{text}": ok(rows={"torch.compile": {"us": 150.0}}),
        "behave/graph": ok() | {"outcome": "wrong", "reason": "It gave other bits.\nmore"},
    }
    found = {"machine": {"gpu": "NVIDIA H200", "torch": "2.11"}, "units": units}
    shown = report.markdown(found, plan.units(), "now")
    least = problem.flops / 8.0e14 * 1e6  # more than its bytes take
    expected = f"| `{text}` | {least:.1f} | 200.0 | 150.0 | 100.0 x_sm80 | {least / 100:.0%} | 2.00x | y_simt 400.0 |"
    assert expected in shown
    assert "- `behave/graph`: wrong. It gave other bits.\n" in shown
    assert "copy 4.00 TB/s, bf16 800 TFLOP/s" in shown
    assert shown.startswith("# NVIDIA H200\n")


def test_the_table_of_functions():
    name = "conv2d_batch_norm/n4c8h5w5_k8r3s3_f16nhwc_relu"
    times = {"forward": {"pytorch": {"us": 30.0}, "fastconv": {"us": 20.0}}}
    times |= {"step": {"pytorch": {"us": 90.0}, "fastconv": {"us": 40.0}}}
    other = name.replace("relu", "silu")
    units = {f"function/{name}": ok(times=times), f"function/{other}": ok(times={"forward": times["forward"]})}
    shown = report.markdown({"machine": {}, "units": units}, plan.units(), "now")
    assert f"| `{name}` | 30.0 | 20.0 | 1.50x | 90.0 | 40.0 | 2.25x |" in shown
    assert f"| `{other}` | 30.0 | 20.0 | 1.50x |  |  |  |" in shown


def test_a_table_of_nothing():
    shown = report.markdown({"machine": {}, "units": {}}, plan.units(), "now")
    assert (
        "0 of" in shown
        and "Times" not in shown
        and "Functions" not in shown
        and shown.count("| not yet |") == len(plan.kernels()) + len(pairs.pairs())
    )


def test_what_is_proven_on_hardware_is_said_no_better_than_it_is():
    kernel = next(k for k in plan.kernels() if k.name == "maxpool2d/fprop_window_simt")
    smoke, first = (f"{kind}/{kernel.name}" for kind in ("smoke", "prove"))
    assert proof.hardware({}, kernel) == "not yet"
    units = {smoke: ok(problems=9)}
    assert proof.hardware(units, kernel) == "9 small problems"
    units[f"{first}/f32"] = ok(problems=100)
    assert proof.hardware(units, kernel) == "in part: f32"
    units |= {f"{first}/f16": ok(problems=50), f"{first}/bf16": ok(problems=50)}
    assert proof.hardware(units, kernel) == "200 problems: f32, f16, bf16"
    units[f"{first}/f16"]["outcome"] = "wrong"
    assert proof.hardware(units, kernel) == "WRONG"


# --- the command ----------------------------------------------------------------------------------------------------


@NO_GPU
def test_without_a_gpu_it_refuses_in_one_sentence():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("There is no GPU to run on: torch ") and done.stderr.count("\n") == 1


def test_kinds_are_chosen_by_name(capsys):
    assert command.main(["--list", "--only", "behave,limits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(plan.BEHAVIOURS) + 5 and "limits/copy" in lines[0]
    with pytest.raises(SystemExit):
        command.main(["--only", "behaviour"])
    assert "behaviour: the kinds are smoke, limits" in capsys.readouterr().err


def test_the_script_of_a_lent_machine_is_well_formed():
    subprocess.run(["bash", "-n", ROOT / "benchmarks/gpu/lent.sh"], check=True)


def test_the_table_in_the_documents_is_what_the_command_prints():
    """Between its marks in docs/gpu.md stands what the command prints: no kernel is left out, none is praised."""
    text, machines = (ROOT / "docs/gpu.md").read_text(), proof.recorded()
    shown = text.split(f"{proof.MARKS[0]}\n")[1].split(f"\n{proof.MARKS[1]}")[0]
    assert shown == proof.tables(), "python -m fastconv.testing.proof --write docs/gpu.md brings it up to date."
    assert machines or "**No kernel of this library has run on a GPU yet.**" in text
