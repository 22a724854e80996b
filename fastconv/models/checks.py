"""What every network says about an input it cannot take."""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import Proxy


def check_images(
    network: nn.Module,
    x: Tensor,
    *,
    channels: int = 3,
    smallest: int = 1,
    exactly: int | None = None,
    multiple: int = 1,
) -> None:
    """Raise RuntimeError, as torch does for shapes, unless `x` is [N, channels, H, W] with H and W large enough.

    TypeError, as torch's layers have it, where `x` is no tensor.
    `smallest` is the least number of pixels a side from which every layer has an output; `exactly` stands
    instead of it where a layer takes one size only. H and W must be multiples of `multiple`.
    """
    if isinstance(x, Proxy):  # a symbolic trace has no sizes
        return
    name = type(network).__name__
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} takes a tensor of images [N, {channels}, H, W], but got a {type(x).__name__}.")
    shape = tuple(x.shape)
    if x.dim() != 4 or shape[1] != channels:
        raise RuntimeError(f"{name} takes images [N, {channels}, H, W], but got a tensor of shape {list(shape)}.")
    if exactly is not None and shape[2:] != (exactly, exactly):
        raise RuntimeError(f"{name} takes images of {exactly} x {exactly} pixels, but got {shape[2]} x {shape[3]}.")
    if shape[2] % multiple or shape[3] % multiple:
        raise RuntimeError(
            f"{name} takes images whose sides are multiples of {multiple}, but got {shape[2]} x {shape[3]} pixels."
        )
    if shape[2] < smallest or shape[3] < smallest:
        raise RuntimeError(
            f"{name} takes images of at least {smallest} x {smallest} pixels, but got {shape[2]} x {shape[3]}."
        )


def check_image_size(network: nn.Module, image_size: int, smallest: int) -> int:
    """`image_size`, or ValueError unless it is an integer of at least `smallest`.

    `smallest` is the least number of pixels a side from which every layer of `network` has an output.
    """
    if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < smallest:
        raise ValueError(
            f"The argument image_size={image_size!r} of {type(network).__name__} must be an integer of "
            f"at least {smallest}."
        )
    return image_size
