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


def _gradient_cam(name: str, title: str, paper: str, function: Callable[..., Any], combine: Combine) -> Method:
    """A method that needs A and dy/dA, and nothing else: all such methods share one pass."""
    return Method(
        name, title, paper, function, "a spatial signal", "1 f + k h", filters.positive_normalize, combine,
        reads_gradients=True,
    )  # fmt: skip


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
    _gradient_cam("gradcam", "Grad-CAM", "Selvaraju et al. 2017, arXiv:1610.02391", cams.gradcam, cams.combine_gradcam),
    _gradient_cam(
        "gradcampp", "Grad-CAM++", "Chattopadhay et al. 2018, arXiv:1710.11063", cams.gradcampp, cams.combine_gradcampp
    ),
    _gradient_cam(
        "hirescam", "HiResCAM", "Draelos & Carin 2020, arXiv:2011.08891", cams.hirescam, cams.combine_hirescam
    ),
    _gradient_cam("xgradcam", "XGrad-CAM", "Fu et al. 2020, arXiv:2008.02312", cams.xgradcam, cams.combine_xgradcam),
    _gradient_cam(
        "layercam", "LayerCAM", "Jiang et al. 2021, doi:10.1109/TIP.2021.3089943", cams.layercam, cams.combine_layercam
    ),
    _gradient_cam(
        "gradcam_guided",
        "Grad-CAM, gated gradients",
        "after Selvaraju et al. 2017, arXiv:1610.02391",
        cams.gradcam_guided,
        cams.combine_gradcam_guided,
    ),
    _gradient_cam(
        "gradcampp_official",
        "Grad-CAM++, as its authors' code",
        "the program of Chattopadhay et al. 2018, arXiv:1710.11063",
        cams.gradcampp_official,
        cams.combine_gradcampp_official,
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
