"""Triton's interpreter, made to run beside the NumPy at hand.

TRITON_INTERPRET must be set before Triton is imported: the kernels below ``fastconv.kernels.triton`` then run on CPU
tensors, a block at a time, in NumPy.
"""

from __future__ import annotations


def prepare(*, checked: bool = False) -> None:
    """Lets loops of the interpreter have bounds that a kernel computed.

    checked: test every 32-bit sum and product for overflow, which takes nearly half of the time.

    Triton 3.6 keeps scalars as arrays of one element and makes loop bounds of them by ``int``, which NumPy 2.4 refuses.
    Raises RuntimeError when Triton's kernels would be compiled.
    """
    import dataclasses

    import triton
    from triton.runtime import interpreter

    if not triton.knobs.runtime.interpret:
        raise RuntimeError("Kernels are interpreted only where TRITON_INTERPRET is set to 1 before Triton is imported.")
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=checked)
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
