"""Methods as data: what each one is called, needs, costs and is shown as; a new one has its page and a row here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from explainers import filters
from explainers.errors import MethodError
from explainers.inspection import Exposed
from explainers.methods import cams, gradient
from explainers.methods.signals import Combine


@dataclass(frozen=True)
class Method:
    """One method of the literature."""

    name: str
    title: str  # as the paper writes it
    paper: str
    function: Callable[..., tuple[tf.Tensor, tf.Tensor]]  # (model, inputs, indices) -> (logits, raw maps)
    needs: str  # what a model must have, in words
    cost: str  # in forward passes (f), backward passes through the head (h) or the whole model (b), and units k
    postprocessing: Callable[[tf.Tensor], tf.Tensor]  # what the paper shows
    combine: Combine | None = None  # its algebra on shared signals; None for methods with passes of their own
    reads_gradients: bool = False  # whether `combine` needs dy/dA
    reads_weights: bool = False  # whether `combine` needs the classifier's kernel
    spatial: bool = True  # whether it needs a spatial signal
    check: Callable[[Exposed], None] | None = None  # raises MethodError where it does not fit

    def __repr__(self) -> str:
        return f"Method({self.name!r})"


_ALL = (
    Method(
        "cam",
        "CAM",
        "Zhou et al. 2016, arXiv:1512.04150",
        cams.cam,
        needs="global average and one dense layer or 1x1 convolution",
        cost="1 f",
        postprocessing=filters.positive_normalize,
        combine=cams.combine_cam,
        reads_weights=True,
        check=cams.check_cam,
    ),
    Method(
        "gradcam",
        "Grad-CAM",
        "Selvaraju et al. 2017, arXiv:1610.02391",
        cams.gradcam,
        needs="a spatial signal",
        cost="1 f + k h",
        postprocessing=filters.positive_normalize,
        combine=cams.combine_gradcam,
        reads_gradients=True,
    ),
    Method(
        "gradients",
        "Saliency",
        "Simonyan et al. 2013, arXiv:1312.6034",
        gradient.gradients,
        needs="one differentiable input",
        cost="1 f + k b",
        postprocessing=filters.absolute_normalize,
        spatial=False,
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        MethodError: there is none; the message lists the valid names and the nearest.
    """
    if name not in METHODS:
        nearest = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise MethodError(f"there is no method {name!r}.{hint} The methods are: {', '.join(METHODS)}")
    return METHODS[name]


def method_of(function: Callable[..., Any]) -> Method | None:
    """The registered method behind a function, seen through `tf.function`; None for a stranger."""
    plain = getattr(function, "python_function", function)
    return next((method for method in METHODS.values() if method.function is plain), None)
