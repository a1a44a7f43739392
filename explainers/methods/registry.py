"""Methods as data: what each one is called, needs, costs and is shown as; a new one has its page and a row here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from explainers import filters
from explainers.inspection import Exposed
from explainers.methods import cams, gradient, guided, meta, perturbation
from explainers.methods.fixations import check_fixations, fixation_density, fixations
from explainers.methods.full_gradients import full_gradients
from explainers.methods.signals import Combine

_NOT_OPTIONS = {"model", "inputs", "indices", "seeds", "return_gap", "method"}


@dataclass(frozen=True)
class Method:
    """One method of the literature."""

    name: str
    title: str  # as the paper writes it
    paper: str
    function: Callable[..., tuple[tf.Tensor, tf.Tensor]]  # (model, inputs, indices, **options) -> (logits, raw maps)
    needs: str  # what a model must have, in words
    # In forward passes (f), backward passes through the head (h) or through the model (b), for k units and C channels.
    cost: str
    postprocessing: Callable[[tf.Tensor], tf.Tensor]  # what the paper shows
    combine: Combine | None = None  # its algebra on shared signals; None for methods with passes of their own
    reads_gradients: bool = False  # whether `combine` needs dy/dA
    reads_weights: bool = False  # whether `combine` needs the classifier's kernel
    spatial: bool = True  # whether it needs a spatial signal
    seeded: bool = False  # whether `function` draws random numbers, and takes `seeds`
    expanding: bool = False  # whether it makes many passes an image
    check: Callable[[Exposed], None] | None = None  # raises MethodError where it does not fit
    options: tuple[str, ...] = field(default=())  # names of the function's own parameters

    def __repr__(self) -> str:
        return f"Method({self.name!r})"


@dataclass(frozen=True)
class MetaMethod:
    """A way to make a method out of another."""

    name: str
    title: str
    paper: str
    function: Callable[..., Any]  # (method's function, **options) -> function
    cost: str
    seeded: bool
    options: tuple[str, ...]


def _options_of(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(function).parameters if name not in _NOT_OPTIONS)


def _method(name: str, title: str, paper: str, function: Callable[..., Any], **rest: Any) -> Method:
    return Method(name, title, paper, function, options=_options_of(function), **rest)


def _gradient_cam(name: str, title: str, paper: str, function: Callable[..., Any], combine: Combine) -> Method:
    """A method that needs A and dy/dA, and nothing else: all such methods share one pass."""
    return _method(
        name,
        title,
        paper,
        function,
        needs="a spatial signal",
        cost="1 f + k h",
        postprocessing=filters.positive_normalize,
        combine=combine,
        reads_gradients=True,
    )


def _input_map(name: str, title: str, paper: str, function: Callable[..., Any], cost: str, **rest: Any) -> Method:
    """A method that looks at the input alone."""
    return _method(
        name,
        title,
        paper,
        function,
        cost=cost,
        **{
            "needs": "one differentiable input",
            "postprocessing": filters.clip_normalize,
            "spatial": False,
            "check": gradient.check_input,
            **rest,
        },
    )


_ALL = (
    _method(
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
    _method(
        "eigencam",
        "Eigen-CAM",
        "Muhammad & Yeasin 2020, arXiv:2008.00299",
        cams.eigencam,
        needs="a spatial signal; the map is the same for all units",
        cost="1 f",
        postprocessing=filters.positive_normalize,
        combine=cams.combine_eigencam,
    ),
    _method(
        "ablationcam",
        "Ablation-CAM",
        "Desai & Ramaswamy 2020, doi:10.1109/WACV45572.2020.9093360",
        perturbation.ablationcam,
        needs="a spatial signal",
        cost="1 f + C head passes (1 f where CAM fits)",
        expanding=True,
        postprocessing=filters.positive_normalize,
    ),
    _method(
        "scorecam",
        "Score-CAM",
        "Wang et al. 2020, arXiv:1910.01279",
        perturbation.scorecam,
        needs="a spatial signal, one input",
        cost="1 f + C f (or channels f)",
        expanding=True,
        postprocessing=filters.positive_normalize,
    ),
    _input_map("gradients", "Saliency", "Simonyan et al. 2013, arXiv:1312.6034", gradient.gradients, cost="1 f + k b"),
    _input_map(
        "input_x_gradient",
        "Input x gradient",
        "Shrikumar et al. 2016, arXiv:1605.01713",
        gradient.input_x_gradient,
        cost="1 f + k b",
    ),
    _input_map(
        "integrated_gradients",
        "Integrated gradients",
        "Sundararajan et al. 2017, arXiv:1703.01365",
        gradient.integrated_gradients,
        cost="steps (f + k b)",
        expanding=True,
    ),
    _input_map(
        "smoothgrad",
        "SmoothGrad",
        "Smilkov et al. 2017, arXiv:1706.03825",
        gradient.smoothgrad,
        cost="samples (f + k b)",
        expanding=True,
        seeded=True,
    ),
    _input_map(
        "guided_backprop",
        "Guided backpropagation",
        "Springenberg et al. 2014, arXiv:1412.6806",
        guided.guided_backprop,
        cost="1 f + k b",
        needs="ReLUs, one differentiable input",
        check=guided.check_guided,
    ),
    _input_map(
        "guided_gradcam",
        "Guided Grad-CAM",
        "Selvaraju et al. 2017, arXiv:1610.02391",
        guided.guided_gradcam,
        cost="2 f + k (b + h)",
        needs="ReLUs, one differentiable input, a spatial signal",
        spatial=True,
        check=guided.check_guided,
    ),
    _input_map(
        "full_gradients",
        "FullGrad",
        "Srinivas & Fleuret 2019, arXiv:1905.00780",
        full_gradients,
        cost="1 f + k b",
        postprocessing=filters.normalize,
    ),
    _input_map(
        "occlusion",
        "Occlusion",
        "Zeiler & Fergus 2014, arXiv:1311.2901",
        perturbation.occlusion,
        cost="1 f + windows f",
        expanding=True,
        needs="one input of images",
        postprocessing=filters.positive_normalize,
        check=perturbation.check_images,
    ),
    _input_map(
        "rise",
        "RISE",
        "Petsiuk et al. 2018, arXiv:1806.07421",
        perturbation.rise,
        cost="1 f + masks f",
        expanding=True,
        needs="one input of images",
        postprocessing=filters.normalize,
        check=perturbation.check_images,
        seeded=True,
    ),
    _input_map(
        "fixations",
        "CNN Fixations",
        "Mopuri et al. 2017, arXiv:1708.06670",
        fixations,
        cost="1 f, and look-ups for each unit",
        expanding=True,
        needs="layers of convolutional networks, one input",
        postprocessing=fixation_density,
        check=check_fixations,
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
    _method(
        "scorecam_official",
        "Score-CAM, as its authors' code",
        "the program of Wang et al. 2020, arXiv:1910.01279",
        perturbation.scorecam_official,
        needs="a spatial signal, one input",
        cost="1 f + C f (or channels f)",
        expanding=True,
        postprocessing=filters.positive_normalize,
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}

META_METHODS: dict[str, MetaMethod] = {
    method.name: method
    for method in (
        MetaMethod(
            "meta.smooth",
            "Mean over noisy copies",
            "after Smilkov et al. 2017, arXiv:1706.03825",
            meta.smooth,
            "repetitions x the method's",
            seeded=True,
            options=_options_of(meta.smooth),
        ),
        MetaMethod(
            "meta.tta",
            "Mean over scales and mirror images",
            "test-time augmentation",
            meta.tta,
            "2 (1 + scales) x the method's",
            seeded=False,
            options=_options_of(meta.tta),
        ),
    )
}


def method_of(function: Callable[..., Any]) -> Method | None:
    """The registered method behind a function, seen through `tf.function` and meta methods; None for a stranger."""
    plain = inspect.unwrap(getattr(function, "python_function", function))
    return next((method for method in METHODS.values() if method.function is plain), None)
