"""The command line: exit codes, one sentence for every mistake, files written whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import fastconv
from fastconv import cli
from fastconv.testing import corpus

ROOT = Path(__file__).parents[2]
TINY = "n1c8h7w9_k8r3s3_p1_f32nhwc"
QUICK = ("--seconds", "0.001")


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    """The ceilings of a run, measured in milliseconds: no test looks at their size."""
    from fastconv.profiling import roofline
    from fastconv.profiling.roofline import Ceilings

    monkeypatch.setattr(roofline, "ceilings", lambda: Ceilings({"f32": 1e11, "f64": 5e10}, ((1 << 30, 1e10),)))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    return code, *capsys.readouterr()


def own_process(*arguments: str, code: str | None = None, **options) -> subprocess.CompletedProcess:
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "fastconv"]
    return subprocess.run([*start, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60, **options)


MISTAKES = {
    (): None,
    ("nope",): "No such command 'nope'.",
    ("bench", "--nope"): "No such option: --nope",
    ("bench",): "exactly one of the three",
    ("bench", TINY, "--suite", "resnet18"): "exactly one of the three",
    ("bench", "n1c8"): "cannot read the word 'n1c8'",
    ("bench", "n1c8h2w2_k8r3s3_f32nhwc"): "larger than the padded input",
    ("bench", "--suite", "nope"): "There is no corpus 'nope'; the corpora are alexnet",
    ("bench", "--suite", "LICENSE"): "LICENSE, line 2: ",
    ("bench", "--suite", "tests"): "--suite tests:",
    ("bench", TINY, "--batch", "-1"): "--batch must be at least 1, but is -1.",
    ("bench", TINY, "--batch", "two"): "--batch",
    ("bench", TINY, "--pass", "up"): "--pass must be one of fprop, dgrad, wgrad, but is 'up'.",
    ("bench", TINY, "--dtype", "int8"): "--dtype must be one of",
    ("bench", TINY, "--layout", "hwcn"): "--layout must be one of",
    ("bench", TINY, "--seconds", "0"): "--seconds must be a positive number",
    ("bench", TINY, "--seconds", "nan"): "--seconds must be a positive number",
    ("bench", TINY, "--kernel", "conv9d/*"): "no kernel has such a name",
    ("bench", TINY, "--train"): "belong to --capture",
    ("bench", TINY, "--json", "no/such/folder/a.json"): "does not exist",
    ("bench", TINY, "--json", "tests"): "is a directory",
    ("bench", "maxpool2d_n1c8h7w9_r2s2_f32nhwc", "--pass", "wgrad"): "no problem left",
    ("tune",): "exactly one of the two",
    ("tune", TINY, "--dtype", "f64"): "--dtype must be one of f32, f16, bf16, but is 'f64'.",
    ("tune", TINY, "--database", "no/such/folder/a.json"): "does not exist",
    ("bench", "--capture", "resnet81"): "Did you mean resnet18",
    ("bench", "--capture", "torchvision:resnet81"): "There is no model 'torchvision:resnet81'",
    ("bench", "--capture", "keras:resnet18"): "A model is NAME, torchvision:NAME",
    ("bench", "--capture", "nope.py:build"): "there is no such file",
    ("bench", "--capture", "tests/cli/samples.py:nope"): "has no callable 'nope'",
    ("bench", "--capture", "tests/cli/samples.py:number"): "must return a torch.nn.Module, but returned a int",
    ("bench", "--capture", "tests/cli/samples.py:fails"): "ZeroDivisionError",
    ("bench", "--capture", "tests/cli/samples.py:small", "--size", "1"): "The model cannot run on that image",
    ("compare", "resnet81"): "Did you mean resnet18",
    ("compare", "resnet18", "--peers", "onnxruntime,nobody"): "there is no runtime 'nobody'",
    ("compare", "resnet18", "--batch", "0"): "--batch must be at least 1",
    ("compare", "resnet18", "--image", "nope.png"): "--image nope.png: there is no such file.",
    ("compare", "resnet18", "--image", "LICENSE"): "The picture LICENSE cannot be read",
    ("compare", "resnet18", "--weights", "nope.pth"): "--weights nope.pth: there is no such file.",
    ("compare", "resnet18", "--weights", "LICENSE"): "--weights LICENSE:",
    ("compare", "resnet18", "--pretrained"): "No package carries weights",
    ("compare", "resnet18", "--pretrained", "--weights", "a"): "give one",
    ("explain", "n1c8"): "cannot read the word 'n1c8'",
    ("models", "resnet81"): "Did you mean resnet18",
    ("models", "lenet5", "--size", "28"): "LeNet5 takes images of 32 x 32 pixels, but got 28 x 28.",
    ("models", "vgg16", "--size", "0"): "--size must be at least 1, but is 0.",
    ("models", "--size", "64"): "--size belongs to the layers of one network",
    ("models", "lenet5", "--json", "tests"): "is a directory",
}


@pytest.mark.parametrize("arguments", [a for a in MISTAKES if a], ids=" ".join)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, err = run(capsys, *arguments)
    assert code == cli.USAGE
    assert out == ""
    assert err.startswith("fastconv: ")
    assert err.count("\n") == 1
    assert MISTAKES[arguments] in err


def test_nothing_asked_is_help(capsys):
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert all(verb in out for verb in ("bench", "compare", "explain", "models", "doctor"))
    assert run(capsys, "--version")[1] == f"{fastconv.__version__}\n"


def test_bench_prints_and_writes(capsys, tmp_path):
    path = tmp_path / "a.json"
    code, out, err = run(capsys, "bench", TINY, TINY + "_dgrad", *QUICK, "--json", str(path))
    assert (code, err) == (0, "")
    assert "conv2d/fprop_aten" in out
    assert "(chosen)" in out
    assert "checked against fastconv.reference in float64" in out
    written = json.loads(path.read_text())
    assert written["kind"] == "bench"
    assert {"cpu", "cores", "threads", "isa", "torch", "fastconv", "commit", "date"} <= written["machine"].keys()
    assert written["ceilings"]["flops"].keys() == {"f32", "f64"}
    assert [p["problem"] for p in written["problems"]] == [TINY, TINY + "_dgrad"]
    for problem in written["problems"]:
        assert problem.keys() >= {"count", "flops", "bytes", "limit", "bound", "standing", "checked_against", "rows"}
        timed = [row for row in problem["rows"] if row["timing"]]
        assert {row["layout"] for row in timed if row["kernel"].endswith("_aten")} == {"nhwc", "nchw"}
        assert all(row["timing"].keys() >= {"median", "p10", "p90", "calls"} for row in timed)


def test_bench_of_a_suite(capsys, tmp_path):
    path, suite = tmp_path / "a.json", tmp_path / "suite.txt"
    suite.write_text(f"3x {TINY}_bias\nn1c8h5w5_k16r1s1_f32nhwc\n")
    options = ("--batch", "2", "--dtype", "f64", "--pass", "dgrad", "--json", str(path))
    code, out, err = run(capsys, "bench", "--suite", str(suite), *options, *QUICK)
    assert (code, err) == (0, "")
    assert "2 problems, 4 calls" in out
    assert "geomean" in out
    written = json.loads(path.read_text())
    assert written["problems"][0]["problem"] == "n2c8h7w9_k8r3s3_p1_f64nhwc_dgrad"
    assert [p["count"] for p in written["problems"]] == [3, 1]
    assert written["total"]["calls"] == 4


def test_a_wrong_kernel_fails_the_run(capsys, monkeypatch):
    from fastconv.testing.oracle import Oracle

    monkeypatch.setattr(Oracle, "verdict", lambda self, out, name: "It is off." if name.endswith("_aten") else None)
    code, out, _ = run(capsys, "bench", TINY, *QUICK)
    assert code == cli.FAILED
    assert "WRONG conv2d/fprop_aten on" in out
    assert "It is off." in out


def test_compare_sets_the_ways_side_by_side(capsys, tmp_path, monkeypatch):
    from fastconv.testing import ways

    def missing(model, x):
        raise ImportError("No module named 'openvino'")

    monkeypatch.setitem(ways.PEERS, "openvino", missing)
    path, picture = tmp_path / "a.json", tmp_path / "a.png"
    Image.new("RGB", (40, 30), (200, 10, 10)).save(picture)
    arguments = ("lenet5_relu", "--image", str(picture), "--optimize", "--peers", "openvino", "--seconds", "0.01")
    code, out, err = run(capsys, "compare", *arguments, "--json", str(path))
    assert (code, err) == (0, "")
    assert "openvino is not installed" in out
    written = json.loads(path.read_text())
    names = {"stock NCHW", "swapped NCHW", "stock channels_last", "swapped channels_last", "plan"}
    assert written["times"].keys() == written["differences"].keys() == names
    assert all(difference < 1e-5 for difference in written["differences"].values())
    assert written["images"][0].keys() == {"image", "stock", "swapped", "plan"}
    assert written["images"][0]["plan"][0][0] == written["images"][0]["stock"][0][0]


def test_capture_prints_a_corpus(capsys, tmp_path):
    code, out, _ = run(capsys, "bench", "--capture", "tests/cli/samples.py:small", "--size", "8", "--batch", "2")
    assert code == 0
    assert out == "2x n2c3h8w8_k3r3s3_p1_f32nhwc_bias\nmaxpool2d_n2c3h8w8_r2s2_u2_f32nhwc\n"
    path = tmp_path / "small.txt"
    path.write_text(out)
    assert sum(corpus.load(str(path)).values()) == 3
    code, out, _ = run(capsys, "bench", "--capture", "tests/cli/samples.py:small", "--size", "8", "--train")
    assert out.count("_wgrad") == 1
    assert "2x n1c3h8w8_k3r3s3_p1_f32nhwc_wgrad" in out


def test_models_lists_them(capsys):
    code, out, _ = run(capsys, "models")
    assert code == 0
    assert "efficientnet_lite0" in out


def test_models_prints_and_writes_the_layers_of_one(capsys, tmp_path):
    path = tmp_path / "a.json"
    code, out, err = run(capsys, "models", "alexnet_2012", "--json", str(path))
    assert (code, err) == (0, "")
    first = next(line for line in out.splitlines() if "features.0 " in line)
    shown = [cell.strip() for cell in first.strip("│ ").split("│")]
    formula = "floor((227 + 2 * 0 - 11) / 4) + 1 = 55"
    assert shown == ["features.0", "Conv2d 11x11/4", "96 x 55 x 55", formula, "34,944", "210,830,400", "11", "4"]
    assert "60,965,224 parameters; 724,406,816 multiply-adds" in out
    content = json.loads(path.read_text())
    assert content["totals"] == {
        "parameters": 60_965_224,
        "idle_parameters": 0,
        "multiply_adds": 724_406_816,
        "flops": 1_448_813_632,
    }
    assert content["layers"][0]["output"] == [1, 96, 55, 55]
    assert content["layers"][-1]["sees_all"] == [True, True]
    code, out, _ = run(capsys, "models", "vgg11", "--size", "64", "--json", str(path))
    assert "one image of 3 x 64 x 64" in out
    assert json.loads(path.read_text())["layers"][0]["output"] == [1, 64, 64, 64]


def test_doctor(capsys):
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    for word in (
        "instruction sets",
        "avx2" if "avx2" in out else "scalar",
        "GPU",
        "device code",
        "nvcc",
        "triton",
        "settings",
    ):
        assert word in out
    from fastconv import registry

    assert all(kernel.name in out for kernel in registry.kernels())


def test_explain_plans_for_a_gpu_where_there_is_none(capsys):
    code, out, err = run(capsys, "explain", TINY, "--device", "cuda")
    assert (code, err) == (0, "")
    assert "on cuda: conv2d/fprop_aten" in out
    assert "conv2d/fprop_igemm_simt" in out


WITHOUT_EXTENSION = """
import importlib.abc, sys
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "fastconv._C":
            raise ImportError("libgomp.so.1: cannot open shared object file")
sys.meta_path.insert(0, Broken())
from fastconv.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_doctor_without_the_extension_says_what_is_wrong():
    result = own_process("doctor", code=WITHOUT_EXTENSION)
    assert result.returncode == cli.FAILED
    assert "wrong: The fastconv extension, built for torch" in result.stdout
    assert "libgomp.so.1" in result.stdout
    assert "Traceback" not in result.stderr


def test_other_verbs_without_the_extension_are_one_sentence():
    result = own_process("bench", TINY, code=WITHOUT_EXTENSION)
    assert result.returncode == cli.FAILED
    assert result.stdout == ""
    assert result.stderr.startswith("fastconv: The fastconv extension")
    assert result.stderr.count("\n") == 1


def test_without_the_extra_there_is_one_sentence():
    result = own_process("bench", TINY, code="import sys; sys.modules['typer'] = None\n" + WITHOUT_EXTENSION)
    assert result.returncode == cli.USAGE
    assert result.stderr == f"fastconv: {cli.NEEDS_EXTRA}\n"


def test_python_dash_m():
    result = own_process("bench", "n1c8")
    assert result.returncode == cli.USAGE
    assert result.stdout == ""
    assert result.stderr.startswith("fastconv: Problem string")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_leaves_at_once_and_without_files(tmp_path):
    path = tmp_path / "a.json"
    command = [sys.executable, "-m", "fastconv", "bench", TINY, "--seconds", "1000", "--json", str(path)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        while "measured limits" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.5)  # into the timing
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=50)  # far less than the timing would take
    finally:
        process.kill()
    assert process.returncode == cli.INTERRUPTED
    assert err == "fastconv: Interrupted.\n"
    assert list(tmp_path.iterdir()) == []
