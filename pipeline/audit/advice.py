"""For every rule how its value is computed, and what to do about a finding: one line each."""

from __future__ import annotations

from typing import Any

from pipeline.audit.findings import Finding, Scope

_LIFT = (
    "max over regions of Wilson95lower(k/n) / max(quantile over classes of (k+4a)/(n+4), rate in all other classes, "
    "a/4), where k of n maps {what} and a is the region's share of the image"
)

FORMULAS = {
    "BC101": _LIFT.format(what="peak in the region"),
    "BC102": "mean energy in the outer 10 % of the image / area share of it (0.36)",
    "BC103": "images predicted as another class than their label, with p at least the mean p of images that are "
    "rightly predicted as that class; ordered by mistakenness (exp(-entropy) + 1) / 2",
    "BC104": "images of either class that are predicted as the other / images of both; and the median Pearson "
    "correlation of both classes' maps where they are the best two",
    "BC105": "images with an empty map / images of the class",
    "BC106": "median over images of exp(entropy of the map) / cells, against the median over classes + 4 MAD",
    "BC107": "images whose map has several connected regions at half of its maximum / images with a map",
    "BC108": "mean energy in the boxes / mean area share of the boxes",
    "BC109": "accuracy of images that peak in the region - accuracy of the others; two-proportion z, with "
    "Benjamini-Hochberg's correction over classes and regions",
    "BC110": _LIFT.format(what="have 15 % of their energy in the cell"),
    "BC201": "Jensen-Shannon divergence in bits of both runs' peaks by cell, less what chance gives, "
    "(B-1)/(8 ln 2) (1/n1+1/n2); and G-test with Benjamini-Hochberg's correction over classes",
    "BC202": "Jensen-Shannon divergence in bits of both runs' mean maps, less what images differ by; and Welch's z of "
    "the cell that differs most, with Benjamini-Hochberg's correction over classes",
    "BC203": "images that are predicted as another class, near ties left out / images of the same uri and content; and "
    "Pearson's correlation of their maps",
    "BC204": "difference of the shares of right predictions; two-proportion z, with Benjamini-Hochberg's correction "
    "over classes",
    "BC205": "half the sum over classes of the differences of their shares, less what chance gives; and two-proportion "
    "z with Benjamini-Hochberg's correction over classes",
    "BC206": "Kolmogorov-Smirnov distance of histograms of 32 bins, with Benjamini-Hochberg's correction over classes "
    "and statistics; of all images the difference of the mean confidence, and the share of empty maps",
    "BC301": "images without a record / images; and number of images / the baseline's",
    "BC302": "layers that were not compared",
    "BC303": "images of the class in either run; and the chance that all of them lie in one of two runs drawn alike",
    "BC304": "the ignore's last day is before today",
}

ACTIONS = {
    "BC101": "look at the examples: if it is no part of the object (a watermark, a logo, a date), take it out of the "
    "training images or vary it; --confirm MODEL measures whether the model goes by it",
    "BC102": "look whether the maps follow padding, borders or captions: try --resize crop or stretch, and cut borders "
    "off",
    "BC103": "look through the list, the first ones first, and mend the labels that are wrong",
    "BC104": "look whether the images tell the two classes apart at all: merge them, relabel, or add images that show "
    "the difference",
    "BC105": "explain these images with another method as well (gradcam++, layercam, scorecam), or another --layer",
    "BC106": "look whether the class is a texture or a scene, which is harmless, or the model has nothing to go by",
    "BC107": "if the images show several objects, export several boxes an image; else try meta.smooth(...)",
    "BC108": "look what the model goes by instead; if the boxes are wrong, mend them",
    "BC109": "look at images of both kinds: what the model finds there helps or hurts it in this class",
    "BC110": "look at the examples: a few images of the class may carry a mark",
    "BC201": "compare the maps of both runs: if what lies there now is no part of the object, the model goes by it, "
    "and should not go live",
    "BC202": "compare the maps of both runs: if what they show now is no part of the object, the model goes by it",
    "BC203": "look at the examples: those that were right and are wrong now come first",
    "BC204": "look at the images that are wrong now: was it the labels, the images or the model that changed?",
    "BC205": "if the labels moved alike, the input has changed; if not, the model has",
    "BC206": "no harm by itself: look here if another finding needs an explanation",
    "BC301": "see failures/ of the run, mend the input, and say `beamcam run --retry-failures`",
    "BC302": "compare with a run of the same options, or accept this one as the baseline",
    "BC303": "look at the input: was a folder left out, renamed or added?",
    "BC304": "look again whether the finding is harmless, and give the ignore another day or take it out",
}


def found_by(rule: str, severity: str, scope: Scope, **values: Any) -> Finding:
    """A finding with its rule's formula and action."""
    return Finding(rule, severity, scope, formula=FORMULAS[rule], action=ACTIONS[rule], **values)
