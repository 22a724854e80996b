"""Reference networks, built of fastconv's layers or of torch.nn's: one file per architecture family.

    model = create_model("efficientnet_lite0").eval()  # layers="torch" builds the same of torch.nn
    load_weights(model, pretrained_path("efficientnet_lite0"))
    info = model_info("efficientnet_lite0")
    logits = model(load_image("cat.png", info.image_size, info.normalization))
    print(imagenet_labels()[logits.argmax()])
    table = layer_table(model, torch.empty(1, 3, 224, 224))  # what `fastconv models NAME` prints
    dense = to_fully_convolutional(model, torch.empty(1, 3, 224, 224))  # logits for every window of any image

Names of parameters and buffers are those of the published checkpoints, so their weights load as they are.
"""

# Importing a family is what puts its models into the registry.
from fastconv.models import (  # noqa: F401
    alexnet,
    deconvnet,
    densenet,
    detection,
    efficientnet,
    efficientnet_lite,
    fcn,
    fcn_resnet,
    googlenet,
    lenet,
    mobilenet_v1,
    mobilenet_v2,
    nin,
    resnet,
    resnet_cifar,
    squeezenet,
    vgg,
    zfnet,
)
from fastconv.models.fully_convolutional import to_fully_convolutional
from fastconv.models.images import load_image, sample_photographs
from fastconv.models.labels import coco_labels, imagenet_labels
from fastconv.models.layer_table import layer_table
from fastconv.models.registry import ModelInfo, create_model, list_models, model_info
from fastconv.models.weights import load_weights, pretrained_path

__all__ = [
    "ModelInfo",
    "coco_labels",
    "create_model",
    "imagenet_labels",
    "layer_table",
    "list_models",
    "load_image",
    "load_weights",
    "model_info",
    "pretrained_path",
    "sample_photographs",
    "to_fully_convolutional",
]
