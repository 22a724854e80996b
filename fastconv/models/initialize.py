"""Fresh weights as torchvision draws them: the same seed gives the same network."""

from torch import nn


def init_weights(model: nn.Module, *, linear_std: float | None) -> None:
    """Draw all convolution weights, and the linear ones when `linear_std` is given.

    Convolutions: He et al., Delving Deep into Rectifiers, 2015, section 2.2, backward case; zero bias.
    Linear layers: normal with standard deviation `linear_std` and zero bias; None keeps torch's own.
    Batch norm starts as the identity, which is torch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
