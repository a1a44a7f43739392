"""The literature: one family a file, one method a page."""

from explainers.methods import cams, full_gradients, gradient, guided, meta, noise, perturbation
from explainers.methods.registry import META_METHODS, METHODS, Method
from explainers.methods.specs import get_method

__all__ = [
    "META_METHODS",
    "METHODS",
    "Method",
    "cams",
    "full_gradients",
    "get_method",
    "gradient",
    "guided",
    "meta",
    "noise",
    "perturbation",
]
