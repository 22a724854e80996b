"""Training: the papers' recipes as data, runs that resume exactly, several processes through torchrun.

job = Job("lenet5_relu", "digits", recipe_for("lenet5_relu"))
trainer = Trainer(job)
trainer.run(on_epoch=lambda trainer, epoch: print(epoch))
trainer.save_weights("lenet.safetensors")
load_predictor("lenet5_relu", ["lenet.safetensors"])("digit.png")
"""

from fastconv.training.checkpoint import CheckpointError
from fastconv.training.datasets import Data, Samples, open_data
from fastconv.training.detector import DetectorTrainer
from fastconv.training.objects import open_objects
from fastconv.training.predict import Detector, Prediction, Predictor, load_detector, load_predictor
from fastconv.training.recipes import RECIPES, Recipe, recipe_for
from fastconv.training.team import Team, team
from fastconv.training.trainer import Epoch, Job, Trainer

__all__ = [
    "RECIPES",
    "CheckpointError",
    "Data",
    "Detector",
    "DetectorTrainer",
    "Epoch",
    "Job",
    "Prediction",
    "Predictor",
    "Recipe",
    "Samples",
    "Team",
    "Trainer",
    "load_detector",
    "load_predictor",
    "open_data",
    "open_objects",
    "recipe_for",
    "team",
]
