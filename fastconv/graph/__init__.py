"""Whole networks as plans: capture, passes, lowering to one program over one arena."""

from fastconv.graph.freeze import freeze
from fastconv.graph.optimize import optimize
from fastconv.graph.optimized import Optimized, load_plan
from fastconv.graph.piecewise import Piecewise

__all__ = ["Optimized", "Piecewise", "freeze", "load_plan", "optimize"]
