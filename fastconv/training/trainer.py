"""The training loop: a network, a recipe and data, step by step, stopped and resumed anywhere with the same bits.

All chance of a run is a function of its seed and of what it is for (which epoch, which step, which process), so the
state of a run is its weights, its optimiser, the step and a few sums.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.models.registry import ModelInfo, create_model, layer_module, model_info
from fastconv.training import checkpoint
from fastconv.training.augment import margin
from fastconv.training.chance import drawing_for
from fastconv.training.datasets import Data, open_data
from fastconv.training.loader import Batches
from fastconv.training.recipes import Recipe
from fastconv.training.schedules import Watch
from fastconv.training.team import Team

Outputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]  # of a network: logits, or these and auxiliary ones


@dataclass(frozen=True)
class Job:
    """What decides a run's result. Stored in its checkpoints: only the same job resumes from them."""

    model: str
    data: str
    recipe: Recipe
    size: int | None = None  # of the images; the network's own when None
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    layers: Literal["fastconv", "torch"] = "fastconv"

    def facts(self) -> dict[str, Any]:
        """As JSON keeps it."""
        facts = asdict(self)
        steps = [f"{type(step).__name__}: {step}" for step in self.recipe.augmentation]
        return facts | {
            "recipe": facts["recipe"] | {"schedule": str(self.recipe.schedule), "augmentation": steps},
        }


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. Losses are means over pictures, accuracies shares of pictures (dense: of pixels)."""

    epoch: int
    rate: float
    loss: float
    accuracy: float
    held_loss: float
    held_accuracy: float


@dataclass
class Sums:
    """Running sums over pictures (dense: pixels)."""

    loss: float = 0.0
    right: float = 0.0
    count: float = 0.0

    def add(self, loss: float, right: float, count: float) -> None:
        self.loss, self.right, self.count = self.loss + loss, self.right + right, self.count + count

    def means(self) -> tuple[float, float]:
        """Loss and accuracy."""
        return self.loss / max(self.count, 1), self.right / max(self.count, 1)


class Trainer:
    """One run: `run()` does what is left of it, `save` and `load` keep and take up its state."""

    measures = ("accuracy", "accuracy")  # what an epoch's `accuracy` and `held_accuracy` are

    def __init__(self, job: Job, *, team: Team | None = None, data: Data | None = None) -> None:
        self.job, self.team = job, team or Team()
        info, recipe = self._info(), job.recipe
        self.info, self.size = info, info.image_size if job.size is None else job.size
        layer_module(job.layers)
        if recipe.epochs < 1 or recipe.batch < 1 or not (0 < recipe.rate < math.inf):
            raise ValueError(
                "A recipe needs epochs and batch of at least 1 and a positive rate, but has "
                f"epochs={recipe.epochs}, batch={recipe.batch}, rate={recipe.rate}."
            )
        if job.precision not in ("float32", "bfloat16"):
            raise ValueError(f"The argument precision={job.precision!r} must be 'float32' or 'bfloat16'.")
        self.data = data or self._open()
        self.batches = Batches(
            *(self.data, recipe.batch, self.size, info.normalization, recipe.augmentation),
            *(job.seed, self.team.rank, self.team.world),
        )
        with drawing_for("weights", job.seed):
            self.model = self._build().to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model) if recipe.average is not None else None
        self.optimizer = _optimizer(self.model, recipe)
        self.step, self.sums, self.watch = 0, Sums(), Watch()
        self.history: list[Epoch] = []

    def _info(self) -> ModelInfo:
        return model_info(self.job.model)

    def _open(self) -> Data:
        options = {"channels": self.info.channels, "seed": self.job.seed, "dense": self.info.dense}
        return open_data(self.job.data, size=self._drawn_size(), **options)

    def _build(self) -> nn.Module:
        return build(self.job, len(self.data.classes))

    def _forward(self, images: Tensor, targets: Tensor) -> Tensor | tuple:
        return self.model(images)

    def _drawn_size(self) -> int:
        """Pictures that are made for the run are made as large as evaluation wants them."""
        return self.size if self.info.dense else round(self.size * margin(self.job.recipe.augmentation))

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.job.recipe.epochs * self.batches.steps

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        recipe = self.job.recipe
        scale = recipe.schedule.scale(self.step / self.steps) * self.watch.scale(recipe.schedule)
        rising = recipe.warmup * self.batches.steps
        return recipe.rate * scale * (min(1.0, (self.step + 1) / rising) if rising else 1.0)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the averaged one where the recipe averages."""
        return self.model if self.average is None else self.average

    def run(
        self,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[Trainer, float], None] = lambda trainer, loss: None,
        on_epoch: Callable[[Trainer, Epoch], None] = lambda trainer, epoch: None,
    ) -> bool:
        """Train from the present step to the end; False when `stop` ended it before.

        `stop` is asked after every step, in all processes. A loss that is not finite raises an ArithmeticError.
        """
        while self.step < self.steps:
            loss = self._train_step()
            on_step(self, loss)
            if self.step % self.batches.steps == 0:
                self._finish_epoch()
                on_epoch(self, self.history[-1])
            if self.team.agree(stop()) and self.step < self.steps:
                return False
        return True

    def _train_step(self) -> float:
        images, targets = self.batches(self.step)
        images = images.contiguous(memory_format=torch.channels_last)
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.zero_grad(set_to_none=True)
        with drawing_for("step", self.job.seed, self.step, self.team.rank):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.job.precision == "bfloat16"):
                outputs = self._forward(images, targets)
            loss, counted = self._loss(outputs, targets)
            loss.backward()
        self.team.average_gradients(self.model)
        counted = self.team.sum(counted.double()).tolist()
        if not math.isfinite(counted[0]):
            raise ArithmeticError(
                f"The loss of step {self.step + 1} is {counted[0] / counted[2]}: a lower learning rate than "
                f"{self.rate:g} may help."
            )
        self.optimizer.step()
        self.team.average_buffers(self.model)
        self._average()
        self.sums.add(*counted)
        self.step += 1
        return counted[0] / counted[2]

    def _loss(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy, where the logits of auxiliary classifiers count by their weight; and what `Sums` adds."""
        recipe, parts = self.job.recipe, _parts(outputs)
        losses = [F.cross_entropy(part.float(), targets, label_smoothing=recipe.smoothing) for part in parts]
        loss = losses[0] + recipe.aux_weight * sum(losses[1:])
        return loss, torch.tensor([loss.item() * targets.numel(), _right(outputs, targets), targets.numel()])

    def _average(self) -> None:
        """The averaged weights move towards the present ones; young averages move faster."""
        if self.average is None:
            return
        kept = min(self.job.recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - kept)
                else:
                    mean.copy_(value)

    def _finish_epoch(self) -> None:
        loss, accuracy = self.sums.means()
        rate = self.optimizer.param_groups[0]["lr"]
        held_loss, held_accuracy = self.evaluate()
        self.watch.see(self.job.recipe.schedule, 1 - held_accuracy)
        self.history.append(Epoch(len(self.history) + 1, rate, loss, accuracy, held_loss, held_accuracy))
        self.sums = Sums()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the held-out pictures."""
        model, sums = self.evaluated.eval(), Sums()
        for number in range(self.batches.held_batches):
            images, targets = self.batches.held_batch(number)
            logits = _parts(model(images.contiguous(memory_format=torch.channels_last)))[0]
            loss = F.cross_entropy(logits, targets).item()
            sums.add(loss * targets.numel(), _right(logits, targets), targets.numel())
        total = self.team.sum(torch.tensor([sums.loss, sums.right, sums.count], dtype=torch.float64))
        return Sums(*total.tolist()).means()

    def save(self, path: str | Path) -> None:
        """The whole state, from which `load` goes on as if nothing had happened. The first process writes."""
        if self.team.first:
            tensors = checkpoint.prefixed("model", self.model.state_dict())
            if self.average is not None:
                tensors |= checkpoint.prefixed("average", self.average.state_dict())
            for name, parameter in self.model.named_parameters():
                kept = self.optimizer.state.get(parameter, {})
                values = {key: torch.as_tensor(value) for key, value in kept.items() if value is not None}
                tensors |= checkpoint.prefixed(f"optimizer.{name}", values)
            checkpoint.write(path, tensors, self._state("run") | self._use())

    def load(self, path: str | Path) -> None:
        """Take up the run in `path`; a CheckpointError where it is damaged or that of another job."""
        tensors, state = checkpoint.read(path)
        if state.get("kind") != "run":
            raise checkpoint.CheckpointError(f"The checkpoint {path} holds weights for use, not a run to go on with.")
        self._compare(path, state)
        try:
            self.model.load_state_dict(checkpoint.under("model", tensors))
            if self.average is not None:
                self.average.load_state_dict(checkpoint.under("average", tensors))
            for name, parameter in self.model.named_parameters():
                kept = checkpoint.under(f"optimizer.{name}", tensors)
                self.optimizer.state[parameter] = {key: _like(value, parameter) for key, value in kept.items()}
            self.step, self.sums = state["step"], Sums(**state["sums"])
            self.watch = Watch(**{**state["watch"], "best": float(state["watch"]["best"])})
            self.history = [Epoch(**row) for row in state["history"]]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoint.CheckpointError(f"The checkpoint {path} lacks a part of its state: {error}") from error

    def save_weights(self, path: str | Path) -> None:
        """The evaluated weights under the names of the model's state dict, with what using them takes."""
        if self.team.first:
            checkpoint.write(path, self.evaluated.state_dict(), self._state("weights") | self._use())

    def _use(self) -> dict[str, Any]:
        share = 1.0 if self.info.dense else margin(self.batches.augmentation)
        return {"classes": self.data.classes, "size": self.size, "margin": share}

    def _state(self, kind: str) -> dict[str, Any]:
        watch = asdict(self.watch) | {"best": repr(self.watch.best)}  # JSON has no infinity
        history = [asdict(row) for row in self.history]
        sums = asdict(self.sums)
        return {
            **{"kind": kind, "job": self.job.facts(), "world": self.team.world, "step": self.step},
            **{"sums": sums, "watch": watch, "history": history},
        }

    def _compare(self, path: str | Path, state: dict[str, Any]) -> None:
        """The job and the number of processes must be those of the checkpoint."""
        own = _flat({"job": self.job.facts(), "world": self.team.world, "classes": list(self.data.classes)})
        other = _flat({key: state.get(key) for key in ("job", "world", "classes")})
        for key in own | other:
            if own.get(key) != other.get(key):
                raise checkpoint.CheckpointError(
                    f"The checkpoint {path} is of another run: {key.removeprefix('job.')} is {other.get(key)!r} there "
                    f"and {own.get(key)!r} here."
                )


def build(job: Job, classes: int) -> nn.Module:
    """The job's network for that many classes, with the recipe's dropout where the network takes one."""
    options = {}
    cls = model_info(job.model).build
    if job.recipe.dropout is not None and "dropout" in inspect.signature(cls).parameters:
        options["dropout"] = job.recipe.dropout
    return create_model(job.model, layers=job.layers, num_classes=classes, **options)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = {"lr": recipe.rate, "weight_decay": recipe.decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, nesterov=recipe.nesterov, **decay)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            parameters, momentum=recipe.momentum, alpha=recipe.memory, eps=recipe.epsilon, **decay
        )
    return torch.optim.AdamW(parameters, eps=recipe.epsilon, **decay)


def _parts(outputs: Outputs) -> tuple[Tensor, ...]:
    """The logits, and behind them those of auxiliary classifiers where the network has given some."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    return tuple(outputs.values() if isinstance(outputs, dict) else outputs)


def _right(outputs: Outputs, targets: Tensor) -> float:
    return float((_parts(outputs)[0].detach().argmax(1) == targets).sum())


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of the optimiser in the memory format of its parameter."""
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value) if value.shape == parameter.shape else value


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(value, dict):
        return {name: list(value) if isinstance(value, tuple) else value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{name}.{key}".lstrip(".")).items()}
