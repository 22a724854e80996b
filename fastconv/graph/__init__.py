"""Whole networks as plans: capture, passes, lowering to one program over one arena."""

from fastconv.graph.optimize import Optimized, load_plan, optimize

__all__ = ["Optimized", "load_plan", "optimize"]
