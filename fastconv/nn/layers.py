"""torch.nn's convolutions, pools and norms on fastconv's kernels: subclasses that change the forward call alone.

Construction, parameters, state_dict, repr, hooks and pickling are torch's. ``LAYERS`` is the one table of what replaces
what; a class enters it where it is defined.
"""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor, nn

from fastconv import functional as F

# torch's class -> ours.
LAYERS: dict[type[nn.Module], type[nn.Module]] = {}


def _layer(cls: type[nn.Module]) -> type[nn.Module]:
    """Enters a drop-in class under the torch class it derives from."""
    LAYERS[cls.__base__] = cls
    return cls


def _pad(layer: nn.Module, input: Tensor) -> Tensor:
    """reflect, replicate and circular padding stand before the convolution, as in torch."""
    return torch.nn.functional.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)


def _output_padding(layer: nn.Module, input: Tensor, output_size: list[int] | None, dims: int) -> list[int]:
    """output_padding of a transposed convolution; ``output_size`` in the call takes the place of the layer's own.

    Raises ValueError, as torch does, for a padding mode other than zeros and for an output size out of reach.
    """
    if layer.padding_mode != "zeros":
        raise ValueError(
            f"{type(layer).__name__} pads with zeros only, but padding_mode is {layer.padding_mode!r}; "
            "other modes have no transposed convolution."
        )
    if output_size is None:
        return layer.output_padding
    return layer._output_padding(
        input, output_size, layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation
    )


@_layer
class Conv1d(nn.Conv1d):
    """:class:`torch.nn.Conv1d` on fastconv's kernels."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            return F.conv1d(_pad(self, input), weight, bias, self.stride, 0, self.dilation, self.groups)
        return F.conv1d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


@_layer
class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` on fastconv's kernels."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            return F.conv2d(_pad(self, input), weight, bias, self.stride, 0, self.dilation, self.groups)
        return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


@_layer
class ConvTranspose1d(nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` on fastconv's kernels."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = _output_padding(self, input, output_size, 1)
        return F.conv_transpose1d(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )


@_layer
class ConvTranspose2d(nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` on fastconv's kernels."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = _output_padding(self, input, output_size, 2)
        return F.conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )


@_layer
class MaxPool1d(nn.MaxPool1d):
    """:class:`torch.nn.MaxPool1d` on fastconv's kernels."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.max_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


@_layer
class MaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d` on fastconv's kernels."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


@_layer
class AvgPool1d(nn.AvgPool1d):
    """:class:`torch.nn.AvgPool1d` on fastconv's kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


@_layer
class AvgPool2d(nn.AvgPool2d):
    """:class:`torch.nn.AvgPool2d` on fastconv's kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


@_layer
class AdaptiveAvgPool1d(nn.AdaptiveAvgPool1d):
    """:class:`torch.nn.AdaptiveAvgPool1d` on fastconv's kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(input, self.output_size)


@_layer
class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """:class:`torch.nn.AdaptiveAvgPool2d` on fastconv's kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


@_layer
class AdaptiveMaxPool1d(nn.AdaptiveMaxPool1d):
    """:class:`torch.nn.AdaptiveMaxPool1d` on fastconv's kernels."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.adaptive_max_pool1d(input, self.output_size, self.return_indices)


@_layer
class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    """:class:`torch.nn.AdaptiveMaxPool2d` on fastconv's kernels."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


@_layer
class MaxUnpool2d(nn.MaxUnpool2d):
    """:class:`torch.nn.MaxUnpool2d` on fastconv's kernels."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


def _batch_norm(self: nn.modules.batchnorm._BatchNorm, input: Tensor) -> Tensor:
    """torch's forward of a batch norm, whose statistics are the batch's in training and where it keeps none."""
    symbolic = isinstance(input, torch.fx.Proxy)  # of any rank
    if not symbolic:
        self._check_input_dim(input)
    training, mean, variance = self.training, self.running_mean, self.running_var
    momentum = 0.0 if self.momentum is None else self.momentum
    if training and self.track_running_stats:
        if (count := self.num_batches_tracked) is not None:
            if symbolic:
                path = input.tracer.path_of_module(self)
                count = input.tracer.create_proxy("get_attr", f"{path}.num_batches_tracked".lstrip("."), (), {})
            count.add_(1)
            if self.momentum is None:  # the average of all batches
                momentum = 1.0 / float(count)
    elif training:
        mean = variance = None
    else:
        training = mean is None and variance is None
    return F.batch_norm(input, mean, variance, self.weight, self.bias, training, momentum, self.eps)


@_layer
class BatchNorm1d(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` on fastconv's kernels."""

    forward = _batch_norm


@_layer
class BatchNorm2d(nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` on fastconv's kernels."""

    forward = _batch_norm


@_layer
class LocalResponseNorm(nn.LocalResponseNorm):
    """:class:`torch.nn.LocalResponseNorm` on fastconv's kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)


__all__ = [cls.__name__ for cls in LAYERS.values()]
