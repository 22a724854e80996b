"""torch.nn.functional's convolutions, pools, batch norm and local response norm on fastconv's kernels.

Names, argument order, defaults and results are torch's.

These functions only bring arguments into one form. Which kernel runs is decided in :mod:`fastconv.dispatch`.
3-D convolutions are torch's own functions.
"""

import torch.fx

from fastconv.functional.conv import (
    conv1d,
    conv2d,
    conv2d_act,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from fastconv.functional.conv_norm import conv2d_batch_norm
from fastconv.functional.fused import depthwise_pointwise
from fastconv.functional.norm import batch_norm, local_response_norm
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
    "batch_norm",
    "conv1d",
    "conv2d",
    "conv2d_act",
    "conv2d_batch_norm",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "depthwise_pointwise",
    "local_response_norm",
    "max_pool1d",
    "max_pool2d",
    "max_unpool2d",
]

for _name in __all__:
    torch.fx.wrap(_name)  # a call is one node of a traced graph
