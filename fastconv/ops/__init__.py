"""The torch.library face of the operators: fake kernels and FLOP formulas. Schemas, autograd and autocast rules are
registered by the extension (csrc/bindings), because a Python autograd layer would cost more than the whole call may.
"""

from fastconv.ops import conv2d as conv2d
from fastconv.ops import flops as flops
from fastconv.ops import norm as norm
from fastconv.ops import pool2d as pool2d
