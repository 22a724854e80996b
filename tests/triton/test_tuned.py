"""Tuned tiles: buckets, and a file that may be damaged in any way without more than a warning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from fastconv.kernels.triton import tuned
from fastconv.kernels.triton.configure import Tile
from fastconv.problem import Problem

NAME = "conv2d/fprop_igemm_triton"
DENSE = "n32c128h28w30_k96r3s3_p1_bf16nhwc"
ENTRY = {"tile": [64, 128, 32, 4, 3], "margin": 1.2}


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """The user's file, in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuned, "machine", lambda index=None: "a GPU")
    tuned.forget()
    yield tuned.path()
    tuned.forget()


def kept(text: str = DENSE) -> Tile | None:
    return tuned.tile(NAME, Problem(text), torch.device("cuda"))


def test_alike_problems_share_a_bucket():
    name = tuned.bucket(NAME, Problem(DENSE))
    assert name == f"{NAME} bf16nhwc r3s3 u1x1 m32768 c128 k128 g1"
    for alike in ("n30c100h28w30_k128r3s3_p1_bf16nhwc", DENSE + "_bias_relu", DENSE.replace("_p1", "_p1_d1")):
        assert tuned.bucket(NAME, Problem(alike)) == name
    others = ("n32c128h28w30_k96r3s3_p1_f16nhwc", DENSE.replace("s3", "s1"), DENSE.replace("_p1", "_u2_p1"))
    others += (DENSE.replace("k96", "k64"), DENSE.replace("n32", "n64"), DENSE.replace("nhwc", "nchw"))
    names = {tuned.bucket(NAME, Problem(text)) for text in (DENSE, *others, DENSE.replace("_bf16", "_g32_bf16"))}
    assert len(names) == len(others) + 2


def test_what_was_kept_is_found_by_this_machine_only(file, monkeypatch):
    assert kept() is None
    tuned.keep(file, "a GPU", {tuned.bucket(NAME, Problem(DENSE)): ENTRY})
    assert kept() == Tile(64, 128, 32, 4, 3)
    assert kept("n30c100h28w30_k128r3s3_p1_bf16nhwc_relu") == kept()
    assert tuned.tile(NAME, Problem(DENSE), torch.device("cpu")) is None
    monkeypatch.setattr(tuned, "machine", lambda index=None: "another GPU")
    tuned.forget()
    assert kept() is None


def test_the_package_comes_behind_the_user(file, tmp_path, monkeypatch):
    name, shipped = tuned.bucket(NAME, Problem(DENSE)), tmp_path / "shipped.json"
    monkeypatch.setattr(tuned, "SHIPPED", shipped)
    tuned.keep(shipped, "a GPU", {name: ENTRY})
    assert kept() == Tile(*ENTRY["tile"])
    tuned.keep(file, "a GPU", {name: {"tile": [64, 64, 64, 4, 2]}})
    assert kept() == Tile(64, 64, 64, 4, 2)


def test_the_packages_own_file_is_whole_and_names_its_source():
    content = tuned.read(tuned.SHIPPED)
    assert content["source"]
    assert all(tuned._tile(entry) for entries in content["machines"].values() for entry in entries.values())


def test_a_machine_is_its_gpu_driver_and_versions(monkeypatch):
    """Every part of the key makes another machine."""
    import fastconv

    triton = pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: f"GPU {index}")
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    for module in (torch, triton, fastconv):
        monkeypatch.setattr(module, "__version__", "1.0")
    lines = {tuned.machine.__wrapped__(0), tuned.machine.__wrapped__(1)}
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13010, raising=False)
    lines.add(tuned.machine.__wrapped__(0))
    for module in (torch, triton, fastconv):
        monkeypatch.setattr(module, "__version__", "2.0")
        lines.add(tuned.machine.__wrapped__(0))
    assert len(lines) == 6 and all("GPU" in line for line in lines)


def whole() -> str:
    return json.dumps({"version": tuned.VERSION, "machines": {"a GPU": {tuned.bucket(NAME, Problem(DENSE)): ENTRY}}})


DAMAGE = {
    "empty": b"",
    "bytes": bytes(range(256)),
    "deep": b"[" * 100_000,
    "list": b"[]",
    "version": whole().replace('"version": 1', '"version": 2').encode(),
    "no machines": b'{"version": 1}',
    "machine": b'{"version": 1, "machines": {"a GPU": 3}}',
    "large": b" " * (tuned.MOST_BYTES + 1),
}


def assert_one_warning_and_a_miss(part: str = "") -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = kept(), kept(DENSE.replace("k96", "k64"))
    assert found == (None, None)
    assert [part in str(warning.message) for warning in seen] == [True]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_a_miss_and_one_warning(how, file):
    file.parent.mkdir()
    file.write_bytes(DAMAGE[how])
    assert_one_warning_and_a_miss(str(file))
    tuned.keep(file, "a GPU", {tuned.bucket(NAME, Problem(DENSE)): ENTRY})
    assert kept() == Tile(*ENTRY["tile"])


def test_a_file_cut_at_any_byte_is_a_miss(file):
    file.parent.mkdir()
    text = whole().encode()
    for end in range(len(text) - 1):
        file.write_bytes(text[:end])
        with pytest.raises(tuned.Damaged):
            tuned.read(file)


def test_links_folders_and_pipes_are_not_followed(file, tmp_path):
    (tmp_path / "real.json").write_text(whole())
    file.parent.mkdir()
    file.symlink_to(tmp_path / "real.json")
    assert_one_warning_and_a_miss("cannot be read")
    file.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(file)
        tuned.forget()
        assert_one_warning_and_a_miss("no ordinary file")
        (os.rmdir if file.is_dir() else os.unlink)(file)


def test_another_users_file_is_not_read(file, monkeypatch):
    file.parent.mkdir()
    file.write_text(whole())
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    if file.stat().st_uid == 0:
        os.chown(file, 4321, -1)
    assert_one_warning_and_a_miss("another user")


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"tile": "64"},
        {"tile": [64, 64]},
        {"tile": [64, 64, 32, 4, -1]},
        {"tile": [64, 64, 32, 4, 2.0]},
        {"tile": [64, 65, 32, 4, 2]},
        {"tile": [True, 64, 32, 4, 2]},
        {"tile": [1 << 40, 64, 32, 4, 2]},
        {"tile": [64, 64, 32, 64, 2]},
        {"tile": [64, 64, 32, 4, 99]},
    ],
    ids=str,
)
def test_a_hostile_entry_is_a_miss(entry, file):
    name = tuned.bucket(NAME, Problem(DENSE))
    tuned.keep(file, "a GPU", {name: entry, "another bucket": ENTRY})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept() is None


def _keep_one(file: Path, number: int) -> None:
    tuned.keep(file, "a GPU", {f"bucket {number}": ENTRY})


def test_no_writer_loses_anothers_entries(file):
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        list(pool.map(partial(_keep_one, file), range(32)))
    assert len(tuned.read(file)["machines"]["a GPU"]) == 32
    assert sorted(path.name for path in file.parent.iterdir()) == ["tiles.json", "tiles.lock"]


def test_a_failed_write_leaves_the_old_file_and_no_other(file, monkeypatch):
    tuned.keep(file, "a GPU", {"first": ENTRY})

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        tuned.keep(file, "a GPU", {"second": ENTRY})
    assert list(tuned.read(file)["machines"]["a GPU"]) == ["first"]
    assert sorted(path.name for path in file.parent.iterdir()) == ["tiles.json", "tiles.lock"]


def test_a_lock_held_too_long_is_an_error(file, monkeypatch):
    filelock = pytest.importorskip("filelock")
    monkeypatch.setattr(tuned, "LOCK_SECONDS", 0.1)
    file.parent.mkdir()
    with filelock.FileLock(file.with_suffix(".lock")), pytest.raises(TimeoutError, match="Another process has held"):
        tuned.keep(file, "a GPU", {})


def test_another_process_reads_what_was_kept(file):
    tuned.keep(file, "a GPU", {tuned.bucket(NAME, Problem(DENSE)): ENTRY})
    script = (
        "import torch; from fastconv.kernels.triton import tuned; from fastconv.problem import Problem\n"
        "tuned.machine = lambda index=None: 'a GPU'\n"
        f"print(tuned.tile({NAME!r}, Problem({DENSE!r}), torch.device('cuda')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == str(Tile(*ENTRY["tile"])), done.stderr
