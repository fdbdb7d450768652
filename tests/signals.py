"""Conditionings and dropout for tests: one with other images or another similarity, and a dropout of images and similarity."""

from dataclasses import replace

from semantica.conditioning.signals import IMAGES, SIMILARITY
from semantica.training.recipe import Dropout


def changed(cond, similarity=None, present=None, **tensors):
    """`cond` with other tokens, pooled embeddings, present images or similarity."""
    images = cond.signals[IMAGES]
    images = replace(images, tensors={**images.tensors, **tensors}, present=images.present if present is None else present)
    other = cond.told(IMAGES, images)
    return other if similarity is None else other.told(SIMILARITY, similarity)


def dropping(together, similarity=0.0):
    """The dropout of both signals together, and of the similarity alone."""
    return Dropout(together, (IMAGES, SIMILARITY), {SIMILARITY: similarity})
