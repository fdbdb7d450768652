"""`semantica.load(path)`: a trained model with every application as a method.

An application becomes a method by one line here. Its function is the method: the signature and the docstring stand in one place.
"""

from __future__ import annotations

from dataclasses import dataclass

from semantica.applications import features, ilvr, inversion, repaint, sdedit, segmentation, variations
from semantica.generation.pipeline import Semantica


@dataclass(frozen=True)
class Editor(Semantica):
    """A trained model: `model(images)` draws, and each application is a method."""

    edit = sdedit.edit
    refine = ilvr.refine
    inpaint = repaint.inpaint
    vary = variations.vary
    interpolate = variations.interpolate
    invert = inversion.invert
    render = inversion.render
    features = features.features
    segmenter = segmentation.segmenter


load = Editor.from_pretrained
