"""torch.nn.functional's convolutions and pools on fastconv's kernels: same names, argument order, defaults, results.

These functions only bring arguments into one form. Which kernel runs is decided in :mod:`fastconv.dispatch`.
"""

import torch.fx

from fastconv.functional.conv import conv2d

__all__ = ["conv2d"]

for _name in __all__:
    torch.fx.wrap(_name)  # a call is one node of a traced graph
