"""Ways to run a whole network: as it is, swapped, as a plan, and through the peers that are installed."""

from __future__ import annotations

import contextlib
import copy
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def layout_of(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


class Missing(RuntimeError):
    """A peer cannot run the network here; the message says why."""


@dataclass(frozen=True)
class Way:
    """name: what a table calls it. ours: a way of this library. call: an inference. x: the timed input."""

    name: str
    ours: bool
    call: Callable[[Tensor], Any]
    x: Tensor

    def run(self, x: Tensor | None = None) -> Any:
        """One inference: of the timed input, or of another one brought into its layout."""
        given = self.x if x is None else x.contiguous(memory_format=layout_of(self.x))
        with torch.no_grad():
            return self.call(given)

    def tensors(self) -> list[Tensor]:
        """The results, flat and in float64."""
        return [t.double() for t in leaves(self.run())]


def leaves(results: Any) -> list[Tensor]:
    """The tensors and arrays of nested results, in order."""
    return [torch.as_tensor(t) for t in pytree.tree_leaves(results) if hasattr(t, "shape")]


def eager(model: nn.Module, x: Tensor, layout: str) -> tuple[Way, Way, Any]:
    """The model in eager mode, stock and swapped, input and weights in one layout; and the report of the swap."""
    import fastconv

    stock = model if layout == "NCHW" else copy.deepcopy(model).to(memory_format=FORMATS[layout])
    swapped = _shared_copy(stock)
    report = fastconv.swap(swapped)
    given = x.contiguous(memory_format=FORMATS[layout])
    return Way(f"stock {layout}", False, stock, given), Way(f"swapped {layout}", True, swapped, given), report


def _shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules around the very same parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in tensors})


def plan(model: nn.Module, x: Tensor, **options: Any) -> Way:
    """The model optimized, with the input as it comes."""
    from fastconv.graph import optimize

    return Way("plan", True, optimize(model, x, **options), x)


def compiled(model: nn.Module, x: Tensor) -> Way:
    """torch.compile with Inductor, weights frozen, channels_last."""
    import torch._inductor.config as inductor

    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    run = torch.compile(model)
    with inductor.patch(freezing=True), torch.no_grad():
        run(x)
    return Way("torch.compile", False, run, x)


def onnxruntime(model: nn.Module, x: Tensor) -> Way:
    """ONNX Runtime on the CPU with torch's number of threads."""
    return Way("ONNX Runtime", False, onnxruntime_session(onnx(model, x)), x)


def onnxruntime_session(model: bytes | str) -> Callable[[Tensor], Any]:
    """An inference of a model in ONNX, given as a file's content or path."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda given: session.run(None, {name: given.numpy()})


def openvino(model: nn.Module, x: Tensor) -> Way:
    """OpenVINO on the CPU in float32 with torch's number of threads."""
    return Way("OpenVINO", False, openvino_request(onnx(model, x)), x)


def openvino_request(model: bytes | str) -> Callable[[Tensor], Any]:
    """An inference of a model in ONNX, given as a file's content or path."""
    import openvino as runtime

    core = runtime.Core()
    properties = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(model), "CPU", properties).create_infer_request()
    return lambda given: list(request.infer([given.numpy()]).values())


PEERS: dict[str, Callable[[nn.Module, Tensor], Way]] = {
    "compile": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def peer(name: str, model: nn.Module, x: Tensor) -> Way:
    """A peer by its short name; Missing where it is not installed or refuses the model."""
    try:
        return PEERS[name](model, x)
    except ImportError as error:
        raise Missing(f"{name} is not installed ({error}).") from None
    except Exception as error:  # a peer's compiler raises whatever it likes
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Missing(f"{name} cannot run this model: {first}") from None


def onnx(model: nn.Module, x: Tensor) -> bytes:
    """The model as ONNX, for inputs of this size. Needs the packages onnx and onnxscript."""
    file = io.BytesIO()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        program = torch.onnx.export(copy.deepcopy(model), (x,), dynamo=True, verbose=False)
    program.save(file)
    return file.getvalue()
