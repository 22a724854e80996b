"""A convolution with what stands behind it as one call of the extension, where no gradient is wanted.

Both return NotImplemented for what the extension leaves to the functions one after the other: transforms, subclasses,
devices and types that it has no such call for, and filters that are more than the result that a norm would scale.

conv2d_act(input, weight, bias, stride, padding, dilation, groups, activation, alpha):
    ``activation(conv2d(input, weight, bias))``; `activation` is a name of ``Problem``'s, `alpha` its parameter.
conv2d_norm_act(..., running_mean, running_var, norm_weight, norm_bias, eps):
    The same with a batch norm of stored statistics between the two, folded into the filter.
"""

from fastconv._native import C

conv2d_act, conv2d_norm_act = C.conv2d_act, C.conv2d_norm_act
