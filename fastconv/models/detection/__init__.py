"""Detectors: networks that find things and say where they are."""

from fastconv.models.detection import fast_rcnn, faster_rcnn, rcnn, yolo_small, yolo_v1  # noqa: F401
from fastconv.models.detection.common import Detections, Detector, Finder, Lesson, Part

__all__ = ["Detections", "Detector", "Finder", "Lesson", "Part"]
