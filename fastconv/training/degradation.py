"""The degradation experiment: deeper plain networks learn worse than shallow ones, deeper residual ones do not.

for course in degradation((20, 56), "digits", epochs=4):
    print(course.model, course.last_loss)
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.models.registry import model_info
from fastconv.training.curves import pyplot, save_figure
from fastconv.training.datasets import open_data
from fastconv.training.recipes import recipe_for
from fastconv.training.trainer import Job, Trainer

KINDS = ("plain", "resnet")

_WIDTH, _HEIGHT = 14, 4  # inches
_SMOOTHED = 0.9  # share of the running mean a step keeps, in the picture only


@dataclass(frozen=True)
class Course:
    """How one network learned: the training loss of every step, its mean over the last epoch, and the L2 norm of the
    loss's gradient for each weight of a convolution or linear layer, from the image on, before and after training."""

    model: str
    losses: tuple[float, ...]
    last_loss: float
    gradients_at_start: tuple[float, ...]
    gradients_at_end: tuple[float, ...]


def degradation(
    depths: Sequence[int] = (20, 56),
    data: str = "digits",
    *,
    epochs: int = 6,
    batch: int = 32,
    rate: float | None = None,
    size: int = 16,
    seed: int = 0,
    layers: str = "fastconv",
    on_step: Callable[[str, float], None] = lambda model, loss: None,
) -> Iterator[Course]:
    """Train the plain and the residual CIFAR network of every depth, one after the other, on the same batches.

    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, figures 1 and 6 and section 4.2, whose
    recipe they follow without augmentation; `rate` is the paper's 0.1 for 128 pictures a step when None, in proportion.
    `size` is the side of the pictures in pixels. ValueError for a depth there is no network of, at once.
    """
    names = [f"{kind}{depth}_cifar" for depth in depths for kind in KINDS]
    infos = [model_info(name) for name in names]
    pictures = open_data(data, size=size, channels=infos[0].channels, seed=seed)
    return (
        _course(Trainer(_job(name, data, epochs, batch, rate, size, seed, layers), data=pictures), on_step)
        for name in names
    )


def _job(name: str, data: str, epochs: int, batch: int, rate: float | None, size: int, seed: int, layers: str) -> Job:
    # One recipe for all depths: the paper's warm-up for 110 layers would make them differ in more than depth.
    recipe = replace(recipe_for(f"{KINDS[0]}20_cifar"), augmentation=(), epochs=epochs, batch=batch)
    paper = recipe_for(name)
    rate = paper.rate * batch / paper.batch if rate is None else rate
    return Job(name, data, replace(recipe, rate=rate), size, seed, layers=layers)


def _course(trainer: Trainer, on_step: Callable[[str, float], None]) -> Course:
    losses = []

    def step(trainer: Trainer, loss: float) -> None:
        losses.append(loss)
        on_step(trainer.job.model, loss)

    batch = trainer.batches(0)
    start = gradient_norms(trainer.model, *batch)
    trainer.run(on_step=step)
    end = gradient_norms(trainer.model, *batch)
    return Course(trainer.job.model, tuple(losses), trainer.history[-1].loss, start, end)


def gradient_norms(model: nn.Module, images: Tensor, classes: Tensor) -> tuple[float, ...]:
    """The L2 norm of the cross entropy's gradient for the weight of each convolution and linear layer, in the order
    of `model.modules()`; batch norms take the batch's statistics, and the model stays as it is."""
    model = copy.deepcopy(model).train()
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(images), classes).backward()
    weighted = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return tuple(float(module.weight.grad.norm()) for module in weighted)


def save_degradation(courses: Sequence[Course], path: str | os.PathLike, title: str) -> None:
    """Training loss by step (running means) and gradient norms by depth before and after, side by side."""
    plt = pyplot()
    figure, (loss, start, end) = plt.subplots(1, 3, figsize=(_WIDTH, _HEIGHT), layout="constrained")
    for course in courses:
        style = {"label": course.model, "linestyle": "--" if course.model.startswith(KINDS[0]) else "-"}
        loss.plot(range(1, len(course.losses) + 1), _running_means(course.losses), **style)
        for axes, norms in ((start, course.gradients_at_start), (end, course.gradients_at_end)):
            axes.plot(range(1, len(norms) + 1), norms, **style)
            axes.set_yscale("log")
            axes.set_xlabel("layer, from the image on")
    for axes, name in ((loss, "training loss"), (start, "gradient norm at the start"), (end, "and at the end")):
        axes.set_title(name)
        axes.grid(alpha=0.3)
    loss.set_xlabel("step")
    loss.legend()
    figure.suptitle(title)
    save_figure(figure, path)


def _running_means(losses: Sequence[float]) -> list[float]:
    means = list(losses[:1])
    for loss in losses[1:]:
        means.append(_SMOOTHED * means[-1] + (1 - _SMOOTHED) * loss)
    return means
