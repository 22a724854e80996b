"""A plan as plain data: its graph as JSON and its weights as tensors. It holds no code: operators are named, and names
that are not known raise.
"""

from __future__ import annotations

import json
import operator
import os
import re
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fastconv.graph import operators
from fastconv.graph.mapped import MappedFile
from fastconv.graph.network import Network
from fastconv.graph.select import Policy
from fastconv.graph.signature import Signature, TensorInput

if TYPE_CHECKING:
    from fastconv.graph.optimized import Optimized

FORMAT = 1
_OURS = {function.__name__: function for function in operators.ALL}
_PLAIN = {"getitem": operator.getitem, "add": operator.add, "sub": operator.sub, "mul": operator.mul,
          "floordiv": operator.floordiv}  # fmt: skip
_OPERATOR = re.compile(r"(\w+)::(\w+)\.(\w+)")


def of(module: Optimized) -> dict[str, Any]:
    """The plan's state: what :func:`restore` takes."""
    graph = [_node(node) for node in module.network.graph.nodes]
    signature = module.signature
    described = {
        "format": FORMAT,
        "policy": asdict(module.policy),
        "inputs": [_input(value) for value in signature.inputs],
        "in_spec": pytree.treespec_dumps(signature.in_spec),
        "out_spec": pytree.treespec_dumps(signature.out_spec),
        "graph": graph,
    }
    tensors = {name: tensor.detach().clone() for name, tensor in module.network.tensors.items()}
    return {"plan": json.dumps(described), "tensors": tensors}


def restore(saved: dict[str, Any]) -> tuple[Network, Signature, Policy]:
    """Network, signature and policy of a state. ValueError for one that is damaged or of another format."""
    try:
        plan = json.loads(saved["plan"])
        if plan["format"] != FORMAT:
            raise ValueError(f"its format is {plan['format']}, and this version reads {FORMAT}")
        inputs = tuple(_input_of(value) for value in plan["inputs"])
        specs = [pytree.treespec_loads(plan[name]) for name in ("in_spec", "out_spec")]
        network = Network(_graph(plan["graph"], saved["tensors"]), saved["tensors"])
        return network, Signature(inputs, *specs), Policy(**plan["policy"])
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"This is no plan that fastconv wrote: {error}.") from error


def save(module: Optimized, path: Any) -> None:
    """Writes beside the file and puts it in its place at the end, so that a plan that reads the old one goes on."""
    from safetensors.torch import save_file

    saved, path = of(module), Path(path)
    tensors = {name: tensor.contiguous() for name, tensor in saved["tensors"].items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        save_file(tensors, beside, metadata={"fastconv.plan": saved["plan"]})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Any) -> dict[str, Any]:
    try:
        file = MappedFile(path)
    except ValueError as error:
        raise ValueError(f"{path} is no plan that fastconv wrote: {error}.") from error
    plan = file.metadata.get("fastconv.plan")
    if plan is None:
        raise ValueError(f"{path} is a safetensors file without a plan: load_plan reads what a plan's save() wrote.")
    return {"plan": plan, "tensors": file.tensors}


def _node(node: fx.Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "target": _name(node.target) if node.op == "call_function" else node.target,
        "args": _encode(node.args),
        "kwargs": _encode(node.kwargs),
        "dtype": _dtype(node),
    }


def _dtype(node: fx.Node) -> str | None:
    value = node.meta.get("val")
    return str(value.dtype) if isinstance(value, Tensor) else None


def _graph(nodes: list[dict[str, Any]], tensors: dict[str, Tensor]) -> fx.Graph:
    graph, made = fx.Graph(), {}
    for saved in nodes:
        target = _target(saved["target"]) if saved["op"] == "call_function" else saved["target"]
        args, kwargs = (_decode(saved[part], made) for part in ("args", "kwargs"))
        node = graph.create_node(saved["op"], target, tuple(args), kwargs, saved["name"])
        if saved["op"] == "get_attr" and target not in tensors:
            raise ValueError(f"the tensor {target!r} is missing")
        if saved["dtype"]:
            node.meta["val"] = torch.empty(0, dtype=_torch_dtype(saved["dtype"]), device="meta")
        made[saved["name"]] = node
    graph.lint()
    return graph


def _name(target: Any) -> str:
    """How a file names an operator."""
    if _OURS.get(getattr(target, "__name__", "")) is target:
        return f"fastconv:{target.__name__}"
    if isinstance(target, torch._ops.OpOverload):
        return f"{target._schema.name}.{target._overloadname}"
    if _PLAIN.get(getattr(target, "__name__", "")) is target:
        return f"python:{target.__name__}"
    raise ValueError(f"A plan cannot be saved with the operator {target} in it.")


def _target(name: str) -> Any:
    kind, _, rest = name.partition(":")
    if kind in ("fastconv", "python") and not rest.startswith(":"):
        return {"fastconv": _OURS, "python": _PLAIN}[kind][rest]
    found = _OPERATOR.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} names no operator")
    space, operation, overload = found.groups()
    return getattr(getattr(getattr(torch.ops, space), operation), overload)


# What JSON has no word for, by a key that no keyword argument has.
_TYPES = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"$node": value.name}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(v) for v in value]}
    if isinstance(value, list):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        return {key: _encode(v) for key, v in value.items()}
    for kind, type_ in _TYPES.items():
        if isinstance(value, type_):
            return {f"${kind}": str(value)}
    if isinstance(value, torch.device):
        return {"$device": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"A plan cannot be saved with the constant {value!r} in it.")


def _decode(value: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, made) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (key := next(iter(value))).startswith("$"):
        inner = value[key]
        if key == "$node":
            return made[inner]
        if key == "$tuple":
            return tuple(_decode(v, made) for v in inner)
        if key == "$device":
            return torch.device(inner)
        return _constant(key[1:], inner)
    return {key: _decode(v, made) for key, v in value.items()}


def _constant(kind: str, name: str) -> Any:
    found = getattr(torch, name.removeprefix("torch."))
    if not isinstance(found, _TYPES[kind]):
        raise ValueError(f"{name!r} is no {kind}")
    return found


def _torch_dtype(name: str) -> torch.dtype:
    return _constant("dtype", name)


def _input(value: Any) -> Any:
    if isinstance(value, TensorInput):
        return {"name": value.name, "sizes": list(value.sizes), "dtype": str(value.dtype)}
    return {"value": _encode(value)}


def _input_of(saved: dict[str, Any]) -> Any:
    if "value" in saved:
        return _decode(saved["value"], {})
    return TensorInput(saved["name"], tuple(saved["sizes"]), _torch_dtype(saved["dtype"]))
