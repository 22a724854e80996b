"""The speed table without a clock: what is asked of each layer, what is left out, how the figures add up."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import fastconv.functional
from fastconv.problem import Problem
from fastconv.profiling import machine, roofline, timer
from fastconv.profiling.machine import this_machine
from fastconv.profiling.roofline import Ceilings
from fastconv.profiling.timer import Timing
from fastconv.testing import corpus, speed
from fastconv.testing.speed import Job, Layer

CEILINGS = Ceilings({"f32": 100e9, "f64": 50e9}, ((1 << 30, 10e9),))
STEM = Problem("n1c3h9w8_k4r3s3_u2_p1_f32nhwc")
CONV = Problem("n1c8h7w9_k6r3s3_p1_f32nhwc_bias")
POOL = Problem("maxpool2d_n1c8h7w9_r3s3_u2_p1_f32nhwc")
UP = Problem("n1c5h18w22_k4r2s2_u2_f32nhwc_dgrad_bias")
SCRIPT = Path(__file__).parents[2] / "benchmarks/speed_table.py"


@pytest.mark.parametrize(
    ("layer", "pass_", "text"),
    [
        (STEM, "fprop", "n1c3h9w8_k4r3s3_u2_p1_f32nhwc"),
        (STEM, "dgrad", None),  # nobody asks for the gradient of an image
        (STEM, "wgrad", "n1c3h9w8_k4r3s3_u2_p1_f32nhwc_wgrad"),
        (CONV, "dgrad", "n1c8h7w9_k6r3s3_p1_f32nhwc_dgrad"),
        (POOL, "fprop", "maxpool2d_n1c8h7w9_r3s3_u2_p1_f32nhwc"),
        (POOL, "dgrad", "maxpool2d_n1c8h7w9_r3s3_u2_p1_f32nhwc_dgrad_indexu8"),
        (POOL, "wgrad", None),
        (UP, "fprop", "n1c5h18w22_k4r2s2_u2_f32nhwc_dgrad_bias"),
        (UP, "dgrad", "n1c5h18w22_k4r2s2_u2_f32nhwc"),
        (UP, "wgrad", "n1c5h18w22_k4r2s2_u2_f32nhwc_wgrad"),
    ],
)
def test_what_a_pass_asks_of_a_layer(layer, pass_, text):
    assert speed.step(layer, pass_) == (Problem(text) if text else None)


@pytest.fixture
def corpora(tmp_path, monkeypatch):
    """Two networks that share a layer, and a transposed convolution with the numbers of a gradient."""
    shared = Problem("n1c4h6w5_k5r1s1_f32nhwc")
    files = {
        "resnet18": f"{STEM}\n3x {shared}\n{POOL}\n",
        "vgg16": f"2x {shared.replace(bias=True)}\n{shared}\n2x {POOL}\n",
        "transposed": f"{shared.replace(pass_='dgrad')}\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    monkeypatch.setattr(corpus, "FOLDER", tmp_path)
    monkeypatch.setattr(speed, "NETWORKS", tuple(files))
    return shared, tuple(files)


def test_a_problem_of_several_networks_is_asked_once(corpora):
    shared, networks = corpora
    forward = speed.work("fprop", networks)
    assert forward[Job(shared.replace(n=8), False)] == {"resnet18": 3, "vgg16": 1}
    assert forward[Job(shared.replace(n=8, bias=True), False)] == {"vgg16": 2}
    assert {job.problem.n for job in forward} == set(speed.BATCHES)
    assert {job.problem.layout for job in forward if job.problem.is_conv} == {"nhwc"}
    assert {job.problem.layout for job in forward if not job.problem.is_conv} == {"nhwc", "nchw"}
    gradient = shared.replace(pass_="dgrad")
    backward = speed.work("dgrad", networks)
    assert backward[Job(gradient, False)] == {"resnet18": 3, "vgg16": 3}  # a gradient knows no bias
    assert forward[Job(gradient, True)] == {"transposed": 1}  # the same numbers, another call
    assert backward[Job(shared, True)] == {"transposed": 1}


def test_every_network_has_its_layers():
    """Every shipped network gives work to every pass, and nothing is asked that has no call."""
    for pass_ in speed.PASSES:
        jobs = speed.work(pass_)
        assert set().union(*jobs.values()) == set(speed.NETWORKS)
        assert {job.problem.pass_ for job in jobs if not job.transposed} == {pass_}


@pytest.mark.parametrize("side", ["fastconv", "torch"])
def test_a_wrong_result_is_named_and_never_timed(side, monkeypatch):
    module = {"fastconv": fastconv.functional, "torch": torch.nn.functional}[side]
    honest = module.conv2d
    monkeypatch.setattr(module, "conv2d", lambda *arguments: honest(*arguments) + 1e-2)
    monkeypatch.setattr(timer, "in_turns", lambda *_: pytest.fail("A wrong result was timed."))
    with pytest.raises(RuntimeError, match=f"on {CONV}: .* elements are wrong"):
        speed.time_job(Job(CONV, False), {"a": 1}, CEILINGS, 1e-4)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("pass_", speed.PASSES)
def test_both_sides_of_a_layer_are_timed(pass_, transposed):
    problem = CONV.replace(pass_=pass_, bias=False)
    layer = speed.time_job(Job(problem, transposed), {"a": 1}, CEILINGS, 1e-4)
    assert set(layer.torch) == {"nhwc", "nchw"}
    pool = corpus.backward(POOL, "dgrad").replace(layout="nchw")
    assert set(speed.time_job(Job(pool, False), {"a": 1}, CEILINGS, 1e-4).torch) == {"nchw"}


def layer(problem, counts, own, limit=1e-3, transposed=False, **torch):
    def timing(seconds):
        return Timing(seconds, seconds, 2 * seconds, 1)

    timings = {layout: timing(seconds) for layout, seconds in torch.items()}
    return Layer(Job(problem, transposed), counts, "conv2d/fprop_x_avx2", timing(own), timings, limit)


def test_the_table_weighs_layers_by_each_networks_counts():
    layers = [
        layer(CONV, {"resnet18": 3, "vgg16": 1}, own=2e-3, nhwc=4e-3, nchw=8e-3),
        layer(CONV.replace(k=7), {"vgg16": 1}, own=4e-3, nhwc=9e-3, nchw=2e-3),
        layer(POOL, {"vgg16": 2, "resnet18": 1}, own=1e-3, nhwc=5e-3, nchw=6e-3),
        layer(POOL.replace(layout="nchw"), {"vgg16": 2, "resnet18": 1}, own=1e-3, nchw=6e-3),
    ]
    rows = {row.split("|")[1].strip(): row for row in speed.markdown("fprop", layers).splitlines() if row[:2] == "| "}
    # name | NCHW | channels_last | own | total | geomean | worst | of limit
    assert rows["resnet18, batch 1"] == "| resnet18, batch 1 | 24 | 12 | 6 | 2.00x | 2.00x | 2.00x | 50 % |"
    assert rows["vgg16, batch 1"] == "| vgg16, batch 1 | 10 | 13 | 6 | 1.00x | 1.00x | 0.50x | 33 % |"
    assert "| 18 | 15 | 3 | 5.00x | 5.00x | 5.00x | 100 % |" in rows["pools of all, channels_last, batch 1"]
    assert "| 18 | - | 3 | 6.00x | 6.00x | 6.00x | 100 % |" in rows["pools of all, NCHW, batch 1"]
    assert len(rows) == 5  # with the title; batch 8 was not measured
    worst = speed.markdown("fprop", layers).splitlines()[-1]
    assert worst.startswith("Worst: `n1c8h7w9_k7r3s3_p1_f32nhwc_bias` 0.50x, ")


def test_a_layer_is_short_in_json():
    text = json.dumps(layer(CONV, {"vgg16": 2}, own=1 / 3, nhwc=2 / 3, nchw=1.0, limit=1 / 7).as_dict())
    assert json.loads(text) == {
        "problem": str(CONV),
        "transposed": False,
        "counts": {"vgg16": 2},
        "kernel": "conv2d/fprop_x_avx2",
        "own": 0.3333,
        "spread": 1.0,
        "torch": {"nhwc": 0.6667, "nchw": 1.0},
        "limit": 0.1429,
        "standing": 2.0,
        "round_trip": None,
    }


def test_a_layer_is_timed_again_when_the_cores_have_moved_apart(monkeypatch):
    near, apart = speed.NEAR / 2, speed.NEAR * 2
    trips, timed = [apart, near, apart, near, near], []
    honest = timer.in_turns
    monkeypatch.setattr(speed, "round_trip", lambda: trips.pop(0))
    monkeypatch.setattr(speed, "sleep", lambda seconds: None)
    monkeypatch.setattr(timer, "in_turns", lambda *arguments: timed.append(1) or honest(*arguments))
    patience = speed.Patience(10)
    layer = speed.time_job(Job(CONV, False), {"a": 1}, CEILINGS, 1e-4, patience)
    assert (len(timed), trips, layer.round_trip) == (2, [], near)
    assert patience.left == 10 - speed.PAUSE
    assert "share no cache" not in speed.markdown("fprop", [layer])


def test_without_patience_the_table_tells_of_far_cores(monkeypatch):
    monkeypatch.setattr(speed, "round_trip", lambda: 2 * speed.NEAR)
    monkeypatch.setattr(speed, "sleep", lambda seconds: pytest.fail("It waited."))
    layer = speed.time_job(Job(CONV, False), {"a": 1}, CEILINGS, 1e-4)
    assert "1 of 1 layers were measured on cores that share no cache." in speed.markdown("fprop", [layer])


def test_threads_answer_each_other():
    """One has nobody to ask; two may be late on a busy machine, and are given up."""
    trip = machine.round_trip()
    assert trip is None or trip > 0
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert machine.round_trip() is None
    finally:
        torch.set_num_threads(threads)


def script():
    spec = importlib.util.spec_from_file_location("speed_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(corpora, tmp_path, monkeypatch):
    """Runs the command on the small networks; returns its exit code."""
    monkeypatch.setattr(roofline, "ceilings", lambda: CEILINGS)
    table = script()

    def run(*words):
        arguments = ["speed_table.py", "--seconds", "1e-4", "--output", str(tmp_path / "out"), *words]
        monkeypatch.setattr(sys, "argv", arguments)
        return table.main()

    return run


def test_the_command_writes_every_pass_and_the_readme(command, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed-table -->\nold\n<!-- /speed-table -->\nafter\n")
    assert command("--readme", str(readme)) == 0
    text = readme.read_text()
    assert text.startswith(f"before\n<!-- speed-table -->\n{this_machine().cpu}")
    assert text.endswith("<!-- /speed-table -->\nafter\n")
    assert "old" not in text
    for pass_, title in speed.PASSES.items():
        assert text.count(f"**{title}**") == 1
        assert f"**{title}**" in (tmp_path / f"out/conv_{pass_}.md").read_text()
        lines = (tmp_path / f"out/conv_{pass_}.json").read_text().splitlines()
        content = json.loads("\n".join(lines))
        assert content["pass"] == pass_
        problems = {(x["problem"], x["transposed"]) for x in content["layers"]}
        assert problems == {(str(job.problem), job.transposed) for job in speed.work(pass_, speed.NETWORKS)}
        rows = [json.loads(line.removesuffix(",")) for line in lines if line.startswith("  {")]
        assert rows == content["layers"]  # one line each


def test_the_command_measures_what_it_is_asked_for(command, tmp_path, capsys):
    assert command("--passes", "wgrad", "--networks", "vgg16") == 0
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["conv_wgrad.json", "conv_wgrad.md"]
    assert "resnet18" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command("--networks", "vgg16,lenet")
    assert "lenet: not among resnet18, vgg16, transposed" in capsys.readouterr().err


def test_the_command_goes_on_after_a_wrong_result_and_says_so(command, tmp_path, monkeypatch, capsys):
    honest = fastconv.functional.conv2d
    monkeypatch.setattr(fastconv.functional, "conv2d", lambda x, w, *rest: honest(x, w, *rest) + (w.shape[2] == 3))
    assert command("--passes", "fprop") == 1
    assert "WRONG" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/conv_fprop.json").read_text())
    assert {x["problem"] for x in content["layers"]}.isdisjoint({str(STEM), str(STEM.replace(n=8))})
    assert len(content["layers"]) == len(speed.work("fprop", speed.NETWORKS)) - 2
