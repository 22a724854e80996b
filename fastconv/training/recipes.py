"""How the papers trained their networks, as one table.

A row is read where it is needed: `recipe_for(name)` finds the first row whose pattern fits the model's name. `unlike`
says in a sentence what the paper did and this recipe does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from fastconv.training.augment import Affine, AreaCrop, ColourShift, Crop, Flip, Light, PaddedCrop, Step
from fastconv.training.schedules import Cosine, Plateau, Polynomial, Schedule, Stairs, Steps


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run apart from the network, the data and the seed.

    `rate` is the learning rate for `batch` images a step. `decay` is the L2 penalty on all parameters. `momentum` is
    that of SGD and RMSprop. `smoothing` is of the labels, `aux_weight` that of auxiliary classifiers' losses, `average`
    the decay a step of the averaged weights that are evaluated (None: the weights themselves).
    """

    batch: int
    epochs: int
    rate: float
    schedule: Schedule
    source: str
    optimizer: Literal["sgd", "rmsprop", "adam"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    decay: float = 0.0
    dropout: float | None = None  # given to the network; None leaves its own
    epsilon: float = 1e-8  # of rmsprop and adam
    memory: float = 0.99  # of rmsprop's squares
    smoothing: float = 0.0
    aux_weight: float = 0.3
    warmup: float = 0.0  # epochs in which the rate rises from nothing
    average: float | None = None
    augmentation: tuple[Step, ...] = ()
    unlike: str = ""


_IMAGENET = (Crop(), Flip(), ColourShift())
_CIFAR = (PaddedCrop(), Flip())
_WORKERS = "The paper's many asynchronous workers are one."

# Pattern of model names -> recipe; the first that fits holds.
RECIPES: dict[str, Recipe] = {
    "lenet5": Recipe(
        batch=16,
        epochs=20,
        rate=0.002,
        schedule=Steps(at=(2 / 20, 5 / 20, 8 / 20, 12 / 20), factor=0.5),
        augmentation=(Affine(degrees=10, shift=0.06, scale=0.1),),
        source="LeCun et al. 1998, section III: 20 passes, slower after 2, 5, 8 and 12, distorted digits",
        unlike="The paper's rates are divided by second derivatives, one image a step; these are plain.",
    ),
    "lenet5_relu": Recipe(
        batch=32,
        epochs=30,
        rate=0.02,
        schedule=Cosine(),
        decay=5e-4,
        augmentation=(Affine(degrees=10, shift=0.06, scale=0.1),),
        source="our own, for the form that is taught today",
    ),
    "mlp": Recipe(
        batch=32,
        epochs=30,
        rate=0.02,
        schedule=Cosine(),
        decay=5e-4,
        augmentation=(Affine(degrees=10, shift=0.06, scale=0.1),),
        source="our own, the one of lenet5_relu",
    ),
    "alexnet*": Recipe(
        batch=128,
        epochs=90,
        rate=0.01,
        schedule=Plateau(),
        decay=5e-4,
        dropout=0.5,
        augmentation=_IMAGENET,
        source="Krizhevsky et al. 2012, sections 4 and 5",
    ),
    "zfnet*": Recipe(
        batch=128,
        epochs=70,
        rate=0.01,
        schedule=Plateau(),
        dropout=0.5,
        augmentation=(Crop(), Flip()),
        source="Zeiler, Fergus 2013, section 3",
        unlike="The paper takes ten fixed crops and holds filters of the first layer to a root mean square of 0.1.",
    ),
    "vgg*": Recipe(
        batch=256,
        epochs=74,
        rate=0.01,
        schedule=Plateau(),
        decay=5e-4,
        dropout=0.5,
        augmentation=(Crop(256 / 224, 512 / 224), Flip(), ColourShift()),
        source="Simonyan, Zisserman 2014, section 3.1",
        unlike="The paper starts the deeper networks from the shallower ones' weights.",
    ),
    "nin_cifar": Recipe(
        batch=128,
        epochs=200,
        rate=0.1,
        schedule=Plateau(most=2),
        decay=1e-4,
        dropout=0.5,
        augmentation=_CIFAR,
        source="Lin et al. 2013, section 4, after Goodfellow et al. 2013; the initial rate is set there by hand",
    ),
    "nin": Recipe(
        batch=128,
        epochs=90,
        rate=0.01,
        schedule=Plateau(most=2),
        decay=5e-4,
        dropout=0.5,
        augmentation=_IMAGENET,
        source="Lin et al. 2013, section 4: the procedure of AlexNet",
    ),
    "googlenet*": Recipe(
        batch=32,
        epochs=64,
        rate=0.01,
        schedule=Stairs(factor=0.96, times=8),
        decay=2e-4,
        dropout=0.4,
        aux_weight=0.3,
        augmentation=(AreaCrop(), Flip(), Light()),
        source="Szegedy et al. 2014, section 6; batch, rate, passes and decay from the published Caffe model",
        unlike=_WORKERS,
    ),
    "densenet*_cifar": Recipe(
        batch=64,
        epochs=300,
        rate=0.1,
        schedule=Steps(at=(0.5, 0.75)),
        nesterov=True,
        decay=1e-4,
        augmentation=_CIFAR,
        source="Huang et al. 2016, section 4.2",
    ),
    "densenet*": Recipe(
        batch=256,
        epochs=90,
        rate=0.1,
        schedule=Steps(at=(30 / 90, 60 / 90)),
        nesterov=True,
        decay=1e-4,
        augmentation=(AreaCrop(), Flip(), Light(), ColourShift()),
        source="Huang et al. 2016, section 4.2",
    ),
    "resnet110_cifar": Recipe(
        batch=128,
        epochs=182,
        rate=0.1,
        schedule=Steps(at=(32 / 64, 48 / 64)),
        warmup=1,
        decay=1e-4,
        augmentation=_CIFAR,
        source="He et al. 2015, section 4.2",
        unlike="The paper warms up at a tenth of the rate until the training error is below 80 %; here it rises.",
    ),
    "*_cifar": Recipe(
        batch=128,
        epochs=182,
        rate=0.1,
        schedule=Steps(at=(32 / 64, 48 / 64)),
        decay=1e-4,
        augmentation=_CIFAR,
        source="He et al. 2015, section 4.2: 64,000 steps, the rate divided by 10 after 32,000 and 48,000",
    ),
    "resnet*": Recipe(
        batch=256,
        epochs=120,
        rate=0.1,
        schedule=Plateau(),
        decay=1e-4,
        augmentation=(Crop(256 / 224, 480 / 224), Flip(), ColourShift()),
        source="He et al. 2015, section 3.4",
    ),
    "squeezenet*": Recipe(
        batch=512,
        epochs=68,
        rate=0.04,
        schedule=Polynomial(power=1),
        decay=2e-4,
        dropout=0.5,
        augmentation=(Crop(), Flip()),
        source="Iandola et al. 2016, section 3.1, and the published Caffe model",
    ),
    "mobilenet_v1*": Recipe(
        batch=96,
        epochs=100,
        rate=0.045,
        schedule=Stairs(factor=0.94, times=50),
        optimizer="rmsprop",
        memory=0.9,
        epsilon=1.0,
        augmentation=(AreaCrop(0.3), Flip()),
        source="Howard et al. 2017, section 3.2: RMSprop as for Inception V3, no decay, mild crops",
        unlike=_WORKERS,
    ),
    "mobilenet_v2*": Recipe(
        batch=96,
        epochs=300,
        rate=0.045,
        schedule=Stairs(factor=0.98, times=300),
        optimizer="rmsprop",
        memory=0.9,
        epsilon=1.0,
        decay=4e-5,
        dropout=0.2,
        augmentation=(AreaCrop(), Flip()),
        source="Sandler et al. 2018, section 6.1",
        unlike="The paper's sixteen workers of 96 images each are one; torchrun brings them back.",
    ),
    "efficientnet*": Recipe(
        batch=4096,
        epochs=350,
        rate=0.256,
        schedule=Stairs(factor=0.97, times=350 / 2.4),
        optimizer="rmsprop",
        memory=0.9,
        epsilon=1e-3,
        decay=1e-5,
        smoothing=0.1,
        warmup=5,
        average=0.9999,
        augmentation=(AreaCrop(), Flip()),
        source="Tan, Le 2019, section 5.2, and the published code (batch, warm-up, smoothing, averaged weights)",
        unlike="The paper adds AutoAugment.",
    ),
    "deconvnet": Recipe(
        batch=64,
        epochs=90,
        rate=0.01,
        schedule=Plateau(),
        decay=5e-4,
        augmentation=(Flip(),),
        source="Noh et al. 2015, section 4.2",
        unlike="The paper trains on crops around single objects first.",
    ),
    "fcn_resnet50": Recipe(
        batch=32,
        epochs=30,
        rate=0.02,
        schedule=Polynomial(power=0.9),
        decay=1e-4,
        aux_weight=0.5,
        augmentation=(Flip(),),
        source="torchvision's own, after Zhao et al. 2016, section 5.1",
        unlike="Torchvision starts from a ResNet-50 trained on ImageNet, scales pictures by 0.5 to 2 and crops them.",
    ),
    "fcn*": Recipe(
        batch=20,
        epochs=175,
        rate=1e-4,
        schedule=Polynomial(power=0),
        decay=5e-4,
        dropout=0.5,
        augmentation=(Flip(),),
        source="Long et al. 2014, section 4.3",
        unlike="The paper doubles the rate of biases and starts from a trained VGG-16.",
    ),
    "yolo_v1_small": Recipe(
        batch=16,
        epochs=30,
        rate=1e-3,
        schedule=Cosine(),
        optimizer="adam",
        decay=0.05,
        warmup=1,
        dropout=0.0,
        augmentation=(Flip(), Light(0.2)),
        source="our own, for a network that starts from nothing",
    ),
    "yolo_v1*": Recipe(
        batch=64,
        epochs=135,
        rate=1e-2,
        schedule=Steps(at=(75 / 135, 105 / 135)),
        warmup=1,
        decay=5e-4,
        dropout=0.5,
        augmentation=(Flip(), Light(0.5)),
        source="Redmon et al. 2015, section 2.2",
        unlike="The paper starts from 20 convolutions trained on ImageNet, and scales and shifts pictures by a fifth.",
    ),
    "fast*_rcnn_vgg16": Recipe(
        batch=2,
        epochs=16,
        rate=1e-3,
        schedule=Steps(at=(0.75,)),
        decay=5e-4,
        dropout=0.5,
        augmentation=(Flip(),),
        source="Girshick 2015, section 2.3: two pictures a step, 40,000 steps, the last quarter at a tenth of the rate",
        unlike="The paper starts from VGG-16 trained on ImageNet.",
    ),
    "fasterrcnn_resnet50_fpn": Recipe(
        batch=16,
        epochs=26,
        rate=0.02,
        schedule=Steps(at=(16 / 26, 22 / 26)),
        warmup=0.14,
        decay=1e-4,
        augmentation=(Flip(),),
        source="torchvision's own, after Lin et al. 2016",
        unlike="Torchvision starts from a ResNet-50 trained on ImageNet, whose batch norms stay as they are.",
    ),
    "rcnn_alexnet": Recipe(
        batch=1,
        epochs=16,
        rate=1e-3,
        schedule=Steps(at=(0.75,)),
        decay=5e-4,
        dropout=0.5,
        augmentation=(Flip(),),
        source="Girshick et al. 2014, section 2.3: 128 regions a step, rate 0.001",
        unlike="The paper starts from AlexNet trained on ImageNet, and mixes regions of all pictures in a step.",
    ),
    "*rcnn*_small": Recipe(
        batch=8,
        epochs=4,
        rate=1e-3,
        schedule=Cosine(),
        optimizer="adam",
        decay=0.05,
        warmup=0.5,
        augmentation=(Flip(), Light(0.2)),
        source="our own, for networks that start from nothing",
    ),
    "yolo_small": Recipe(
        batch=16,
        epochs=10,
        rate=2e-3,
        schedule=Cosine(),
        optimizer="adam",
        decay=0.05,
        warmup=1,
        augmentation=(Flip(), Light(0.2)),
        source="our own; of the kind of Ge et al. 2021 (YOLOX)",
    ),
    "plain*": Recipe(
        batch=256,
        epochs=120,
        rate=0.1,
        schedule=Plateau(),
        decay=1e-4,
        augmentation=(Crop(256 / 224, 480 / 224), Flip(), ColourShift()),
        source="He et al. 2015, section 3.4",
    ),
}


def recipe_for(name: str) -> Recipe:
    """The recipe of the model `name`; a ValueError where the table has none."""
    for pattern, recipe in RECIPES.items():
        if fnmatch(name, pattern):
            return recipe
    raise ValueError(f"There is no recipe for name={name!r}; there are recipes for {', '.join(RECIPES)}.")
