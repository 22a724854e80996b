"""How far a correct kernel may be from the float64 result.

Errors are measured against the sum of the absolute products, in units of the rounding error u, so that cancellation is
no excuse and no alarm (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
"""

from __future__ import annotations

UNIT = {"f64": 2.0**-53, "f32": 2.0**-24, "tf32": 2.0**-11, "f16": 2.0**-11, "bf16": 2.0**-8}


def relative_bound(dtype: str, terms: int, algorithm: str = "direct") -> float:
    """Bound on |y - y64| / (sum |x||w| + |b|) before the activation.

    16-bit types are summed in float and rounded once; tf32 rounds its operands on the way in.
    """
    if algorithm == "winograd":
        return 64 * UNIT["f32"] + terms**0.5 * UNIT["f32"] + storage(dtype)
    working = UNIT["f64"] if dtype == "f64" else UNIT["f32"]
    summed = min(terms * working / (1 - terms * working), 4 * terms**0.5 * working + 2 * working)
    return summed + 2 * working + storage(dtype) + (2 * UNIT["tf32"] if dtype == "tf32" else 0)


def storage(dtype: str) -> float:
    return UNIT[dtype] if dtype in ("f16", "bf16") else 0.0
