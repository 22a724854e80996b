"""Every model equals the published network of its name: keys, shapes, outputs, gradients, initial weights."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastconv.models
import fastconv.nn
from fastconv.models import create_model, list_models, model_info
from fastconv.models.efficientnet_lite import from_timm, same_padding
from fastconv.models.registry import register
from tests.models.references import (
    LAYERS,
    NAMES,
    PUBLISHED,
    TOLERANCE,
    fill,
    image_batch,
    quick,
    randomized_pair,
    reference,
    relative_error,
    stacked,
)
from tests.models.thin import logits
from tests.third_party import timm, torchvision

# The networks that are always run, not only built; the full count runs the others. Each block type, with and without
# batch norm, and Lite2 because
# its sides of 65, 33 and 17 pixels need other paddings than powers of two.
RUN_NAMES = (
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_lite0",
    "efficientnet_lite2",
    "fcn_resnet50",
    "googlenet",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "squeezenet1_0",
    "squeezenet1_1",
    "vgg11",
    "vgg11_bn",
)
# vgg11's backward pass adds seconds to what vgg11_bn's shows, Lite2's and SqueezeNet 1.0's to their sisters'.
TRAINED_NAMES = tuple(name for name in RUN_NAMES if name not in ("vgg11", "efficientnet_lite2", "squeezenet1_0"))

EXPECTED_NAMES = sorted(
    [
        "alexnet",
        "alexnet_2012",
        "deconvnet",
        *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
        *(f"densenet{depth}_cifar" for depth in (40, 100)),
        *(f"efficientnet_b{i}" for i in range(8)),
        *(f"efficientnet_lite{i}" for i in range(5)),
        *(f"fcn{stride}s" for stride in (8, 16, 32)),
        "fcn_resnet50",
        "googlenet",
        "googlenet_2014",
        "lenet5",
        "lenet5_relu",
        "mlp",
        "mobilenet_v1",
        "mobilenet_v1_050",
        "mobilenet_v2",
        "nin",
        "nin_cifar",
        "plain18",
        "plain34",
        *(f"{kind}{depth}_cifar" for kind in ("plain", "resnet") for depth in (20, 32, 44, 56, 110)),
        *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        "squeezenet1_0",
        "squeezenet1_1",
        *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
        "zfnet",
        "zfnet_wide",
    ]
)


EXPECTED_DETECTORS = (
    *(f"fast_rcnn_{kind}" for kind in ("small", "vgg16")),
    *(f"faster_rcnn_{kind}" for kind in ("small", "vgg16")),
    "fasterrcnn_resnet50_fpn",
    *(f"rcnn_{kind}" for kind in ("alexnet", "small")),
    "yolo_small",
    *(f"yolo_v1{kind}" for kind in ("", "_fast", "_small")),
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ROUNDING_64 = 1e-12  # of a whole network in float64
LIKE_TORCH = 4  # times torch's own rounding error in float32
ZERO_GRADIENT = 1e-12  # what rounding leaves of a float64 gradient that is 0: a bias in front of batch norm


@cache
def on_meta(name: str) -> nn.Module:
    """Our network without storage, in eval mode."""
    with torch.device("meta"):
        return create_model(name).eval()


def presets() -> list[str]:
    """The networks whose published weights torchvision lists."""
    return [name for name in PUBLISHED if name in torchvision().models.list_models()]


@pytest.mark.parametrize("name", presets())
def test_input_and_counts_are_those_of_the_published_weights(name: str):
    weights = next(iter(torchvision().models.get_model_weights(name)))
    preset, info = weights.transforms(), model_info(name)
    assert [info.image_size] == (preset.resize_size if info.dense else preset.crop_size)
    assert info.normalization == (tuple(preset.mean), tuple(preset.std))
    assert info.multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.0006)  # given in 0.001 G
    if name != "googlenet":  # whose auxiliary classifiers are not counted there
        assert info.parameters == weights.meta["num_params"]


def test_list_models_names_every_model():
    assert list_models() == sorted([*EXPECTED_NAMES, *EXPECTED_DETECTORS])


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_shapes_and_products_are_the_published(name: str):
    info = model_info(name)
    ours = on_meta(name)
    with torch.device("meta"):
        theirs = reference(name).eval()
        image = torch.empty(1, 3, info.image_size, info.image_size)
    expected = {key: (value.shape, value.dtype) for key, value in theirs.state_dict().items()}
    assert {key: (value.shape, value.dtype) for key, value in ours.state_dict().items()} == expected
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with FlopCounterMode(display=False) as counter:
        theirs(image)
    assert counter.get_total_flops() == 2 * info.multiply_adds


@pytest.mark.parametrize("name", NAMES)
def test_stated_parameters_and_multiply_adds_are_exact(name: str):
    info = model_info(name)
    model = on_meta(name)
    with torch.device("meta"):
        image = torch.empty(1, info.channels, info.image_size, info.image_size)
    with FlopCounterMode(display=False) as counter:
        output = model(image)
    assert logits(output).shape == (1, info.classes, *(image.shape[2:] if info.dense else ()))
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == info.parameters
    assert counter.get_total_flops() == 2 * info.multiply_adds


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", quick(PUBLISHED, RUN_NAMES))
def test_outputs_equal_in_eval(name: str, layers: str):
    """Exactly as far as float64 goes; in float32 the rounding is of the size of torch's own."""
    ours, theirs = (model.eval() for model in randomized_pair(name, layers))
    x = image_batch()
    with torch.no_grad():
        rounded = stacked(ours(x)), stacked(theirs(x))
        expected = stacked(theirs.double()(x.double()))
        assert relative_error(stacked(ours.double()(x.double())), expected) <= ROUNDING_64
        own, torchs = (relative_error(y.double(), expected) for y in rounded)
    assert own <= LIKE_TORCH * torchs


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", quick(PUBLISHED, TRAINED_NAMES))
def test_outputs_gradients_and_statistics_equal_in_training(name: str, layers: str):
    # In float64: batch norm over two images multiplies the rounding of float32, and a ReLU turned by it is a jump.
    ours, theirs = (model.double() for model in randomized_pair(name, layers))
    outputs = []
    for model in (ours, theirs):
        x = image_batch().double().requires_grad_()
        torch.manual_seed(2)  # the same dropout and the same dropped branches
        y = stacked(model.train()(x))
        y.square().mean().backward()
        outputs.append((y.detach(), x.grad))
    assert relative_error(outputs[0][0], outputs[1][0]) <= TOLERANCE
    assert relative_error(outputs[0][1], outputs[1][1]) <= TOLERANCE

    gradients = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        error = (parameter.grad - gradients[key]).abs().max()
        assert error <= TOLERANCE * gradients[key].abs().max() + ZERO_GRADIENT, key
    statistics = dict(theirs.named_buffers())
    for key, buffer in ours.named_buffers():
        assert relative_error(buffer, statistics[key]) <= TOLERANCE, key


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "densenet121",
        "efficientnet_b0",
        "fcn_resnet50",
        "mobilenet_v2",
        "resnet18",
        "resnet50",
        "squeezenet1_1",
        "vgg11_bn",
    ],
)
def test_same_seed_gives_torchvisions_initial_weights(name: str):
    torch.manual_seed(3)
    ours = create_model(name).state_dict()
    torch.manual_seed(3)
    theirs = reference(name).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("layers", LAYERS)
def test_efficientnet_lite_initial_weights_follow_fan_out_per_group(layers: str):
    torch.manual_seed(4)
    model = create_model("efficientnet_lite0", layers=layers)
    depthwise = model._blocks[-1]._depthwise_conv.weight  # 1152 filters of 3x3
    head = model._conv_head.weight  # 1280 filters of 1x1
    assert depthwise.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)
    assert head.std().item() == pytest.approx(math.sqrt(2 / 1280), rel=0.05)


@pytest.mark.parametrize("layers", LAYERS)
def test_efficientnet_lite_takes_its_padding_from_image_size(layers: str):
    """Built for 75 pixels, whose half sides are odd, the published network pads differently; so must ours."""
    ours, theirs = randomized_pair("efficientnet_lite0", layers, image_size=75)
    x = torch.randn(1, 3, 75, 75, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert relative_error(ours.eval()(x), theirs.eval()(x)) <= TOLERANCE


def test_efficientnet_lite_takes_every_image_size_from_one():
    for size in (1, 31):
        model = create_model("efficientnet_lite0", image_size=size).eval()
        with torch.no_grad():
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 1000)
    for size in (0, -3, 1.5, "a"):
        said = f"image_size={size!r} of EfficientNetLite must be an integer of at least 1"
        with pytest.raises(ValueError, match=said):
            create_model("efficientnet_lite0", image_size=size)


@pytest.mark.parametrize("name", quick([f"efficientnet_lite{i}" for i in range(5)], ("efficientnet_lite0",)))
def test_efficientnet_lite_takes_timms_weights(name: str):
    """At the size that ours is padded for; timm pads for whatever comes. Its tf_ networks are TensorFlow's."""
    with torch.device("meta"):
        ours, theirs = create_model(name), timm().create_model(f"tf_{name}")
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (network.to_empty(device="cpu").eval() for network in (ours, theirs))
    for key, value in theirs.state_dict().items():
        fill(key, value, generator)
    shuffled = dict(sorted(theirs.state_dict().items()))  # as safetensors gives them
    ours.load_state_dict(from_timm(shuffled))
    x = torch.randn(1, 3, *2 * [model_info(name).image_size], generator=generator)
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x)) <= TOLERANCE


def test_same_padding_puts_the_odd_pixel_behind():
    assert same_padding(224, kernel=3, stride=2) == (0, 1)
    assert same_padding(112, kernel=5, stride=2) == (1, 2)
    assert same_padding(65, kernel=5, stride=2) == (2, 2)
    assert same_padding(14, kernel=5, stride=1) == (2, 2)
    assert same_padding(8, kernel=1, stride=2) == (0, 0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficientnet-lite0", "name='efficientnet-lite0' is not .* Did you mean efficientnet_lite0"),
        ("ResNet50", "name='ResNet50' is not .* Did you mean resnet50"),
        ("VGG16-BN", "name='VGG16-BN' is not .* Did you mean vgg16_bn"),
        ("gpt", "name='gpt' is not .* There are alexnet, .*zfnet_wide"),
        (None, "name=None is not "),
        (["vgg11"], "name=\\['vgg11'\\] is not "),
    ],
)
def test_unknown_name_raises_a_sentence_with_close_matches(name: object, said: str):
    with pytest.raises(ValueError, match=said):
        create_model(name, layers="torch")


def test_unknown_layers_raise_a_sentence():
    with pytest.raises(ValueError, match="layers='jax' must be 'fastconv' or 'torch'"):
        create_model("resnet18", layers="jax")


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "a", True])
def test_a_wrong_number_of_classes_raises_a_sentence(wrong: object):
    with pytest.raises(ValueError, match=f"num_classes={wrong!r} must be a positive integer"):
        create_model("resnet18", num_classes=wrong)


def test_unknown_option_raises():
    with pytest.raises(TypeError, match="num_clases"):
        create_model("resnet18", layers="torch", num_clases=10)


def test_a_name_registers_once():
    with pytest.raises(ValueError, match="'resnet18' is already registered"):
        register(model_info("resnet18"))


def test_layers_are_looked_up_in_the_given_namespace():
    """A namespace of marked subclasses marks every convolution, pooling and norm layer of every family."""

    class Marked:
        """Stands for another layer module: subclasses of torch's with the same signatures."""

    kinds = tuple(fastconv.nn.layers.LAYERS)
    for kind in kinds:
        setattr(Marked, kind.__name__, type(kind.__name__, (kind,), {"marked": True}))
    for name in NAMES:
        with torch.device("meta"):
            model = model_info(name).build(Marked)
        assert all(hasattr(module, "marked") for module in model.modules() if isinstance(module, kinds))


def test_import_needs_torch_alone():
    """Nothing optional is imported before it is used, and fastconv.nn only when a network asks for it."""
    optional = (
        "PIL",
        "skimage",
        "safetensors",
        "torchvision",
        "timm",
        "efficientnet_lite_pytorch",
        "fastconv.nn",
    )
    code = f"import sys, fastconv.models; print([name for name in {optional} if name in sys.modules])"
    root = Path(fastconv.models.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
