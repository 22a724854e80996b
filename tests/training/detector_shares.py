"""Run by torchrun: the gradients of every thin detector, each process with its share of the pictures."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from fastconv.models.detection import Detector
from fastconv.models.detection.matching import Sampling
from fastconv.training.team import Team, team
from tests.models.thin_detectors import TARGETS, THIN

_ALL = 10**6


def gradients(name: str, present: Team) -> dict[str, torch.Tensor]:
    """Of the loss of this process's pictures, averaged over the processes; and the loss."""
    model = without_chance(THIN[name].model().double().eval())  # whose batch norms do not see shares
    own = slice(present.rank, None, present.world)
    images, targets = THIN[name].images().double()[own], TARGETS.double()[own]
    loss, overlap = model.loss(model.learn(images, targets), targets, present.share)
    loss.backward()
    present.average_gradients(model)
    told = present.sum(torch.stack([loss.detach(), overlap.double()])) / present.world
    return {"loss": told} | {key: parameter.grad for key, parameter in model.named_parameters()}


def without_chance(model: Detector) -> Detector:
    """A detector that learns from all regions, not from some that are drawn."""
    if model.searches:
        model.sampling = replace(model.sampling, count=_ALL, share=0.5)
    if hasattr(model, "rpn"):
        sampling = Sampling(_ALL, 0.5, object=0.7, nothing=0.3, force=True)
        model.rpn.plan = replace(model.rpn.plan, sampling=sampling)
    return model


if __name__ == "__main__":
    with team() as present:
        found = {name: gradients(name, present) for name in THIN}
        if present.first:
            torch.save(found, Path(sys.argv[1]))
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), threads  # they would abort the interpreter's shutdown
