"""torch.nn.functional's convolutions and pools on fastconv's kernels: same names, argument order, defaults, results.

These functions only bring arguments into one form. Which kernel runs is decided in :mod:`fastconv.dispatch`.
"""

import torch.fx

from fastconv.functional.conv import conv2d
from fastconv.functional.pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    avg_pool1d,
    avg_pool2d,
    max_pool1d,
    max_pool2d,
    max_unpool2d,
)

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "conv2d",
    "max_pool1d",
    "max_pool2d",
    "max_unpool2d",
]

for _name in __all__:
    torch.fx.wrap(_name)  # a call is one node of a traced graph
