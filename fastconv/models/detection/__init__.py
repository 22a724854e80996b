"""Detectors: networks that find things and say where they are."""

from __future__ import annotations

from fastconv.models.detection.yolo_small import Detections, YoloSmall
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo

# Name -> facts for six classes, as those of `fastconv.models.model_info`.
DETECTORS = {"yolo_small": ModelInfo("yolo_small", YoloSmall, 96, IMAGENET, 338_842, 59_480_064, classes=6)}

__all__ = ["DETECTORS", "Detections", "YoloSmall"]
