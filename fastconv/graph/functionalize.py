"""Takes writes out of an exported program: the result of ``relu_(x)`` stands for x from there on."""

from __future__ import annotations

from torch import fx
from torch.export import ExportedProgram


def without_writes(program: ExportedProgram) -> ExportedProgram:
    """The program, changed in place where that is safe; else decomposed by torch, which takes longer."""
    writes = [node for node in program.graph.nodes if _writes(node)]
    if not writes:
        return program
    if not all(_safe(node) for node in writes):
        return program.run_decompositions({})
    for node in writes:
        order = {other: i for i, other in enumerate(program.graph.nodes)}
        written = node.args[0]
        written.replace_all_uses_with(node, lambda user, at=order[node], order=order: order[user] > at)
    return program


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _safe(node: fx.Node) -> bool:
    """Whether the first argument alone is written, is nobody else's memory, and what is returned."""
    schema = node.target._schema
    written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if len(written) != 1 or written[0].name != "self" or len(schema.returns) != 1:
        return False
    source = node.args[0]
    chain = [source]
    while _writes(chain[-1]):  # x.add_(y).relu_(): each hands on the memory of the one before
        chain.append(chain[-1].args[0])
    return all(_owns(part) and all(_reads(user) for user in part.users) for part in chain)


def _owns(node: fx.Node) -> bool:
    """Whether a node's result is new memory (or a chain of writes into such)."""
    return node.op == "call_function" and (_writes(node) or _reads(node))


def _reads(node: fx.Node) -> bool:
    """Whether no result of a node shares memory with an argument, except the one it writes into."""
    if node.op == "output":
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    if _writes(node):
        return True
    aliases = any(r.alias_info is not None for r in schema.returns)
    return not aliases and schema.name not in _MAY_ALIAS


# Operators whose results share memory with their argument sometimes, which their schemas do not say.
_MAY_ALIAS = {
    "aten::dropout",
    "aten::contiguous",
    "aten::reshape",
    "aten::flatten",
    "aten::to",
    "aten::feature_dropout",
}
