"""Whole networks as plans: capture, passes, lowering to one program over one arena."""

from fastconv.graph.optimize import Optimized, optimize

__all__ = ["Optimized", "optimize"]
