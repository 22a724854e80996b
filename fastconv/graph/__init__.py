"""Whole networks as plans: capture, passes, lowering to one program over one arena."""

from fastconv.graph.freeze import freeze
from fastconv.graph.optimize import Optimized, load_plan, optimize

__all__ = ["Optimized", "freeze", "load_plan", "optimize"]
