"""The literature: one family a file, one method a page."""

from explainers.methods import cams, gradient
from explainers.methods.registry import METHODS, Method, get_method

__all__ = ["METHODS", "Method", "cams", "get_method", "gradient"]
