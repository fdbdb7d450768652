"""Segmentation: it learns from a few labelled pictures what it is told, and says what is wrong with labels."""

import numpy as np
import pytest
import torch
from PIL import Image

from semantica.applications.segmentation import mean_iou
from semantica.errors import DataError

SETTINGS = {"num_members": 3, "num_steps": 200, "levels": [0.1]}


@pytest.fixture
def discs():
    """Pictures of 16 px with a bright square somewhere, and where it is."""
    pictures, labels = [], []
    for number in range(8):
        label = torch.zeros(16, 16, dtype=torch.long)
        top, left = 1 + number, 8 - number
        label[top : top + 7, left : left + 7] = 1
        noise = 0.1 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(number))
        pictures.append((label * 1.4 - 0.7) + noise)
        labels.append(label)
    return pictures, labels


def test_it_finds_in_new_pictures_what_was_labelled(model, discs):
    pictures, labels = discs
    segment = model.segmenter(pictures[:4], labels[:4], **SETTINGS)
    score = mean_iou(segment(pictures[4:]), torch.stack(labels[4:]), 2)
    assert score > 0.8
    shuffled = model.segmenter(pictures[:4], [label.flip(0, 1) for label in labels[3::-1]], **SETTINGS)
    assert mean_iou(shuffled(pictures[4:]), torch.stack(labels[4:]), 2) < score


def test_the_same_pictures_and_seed_give_the_same_segmentation(model, discs):
    pictures, labels = discs
    one, other = (model.segmenter(pictures[:3], labels[:3], **SETTINGS) for _ in range(2))
    assert all(torch.equal(a, b) for layer in zip(one.layers, other.layers, strict=True) for a, b in zip(*layer, strict=True))
    assert torch.equal(one(pictures[5]), one(pictures[4:])[1:2])


def test_labels_come_from_palettes_at_any_size(model, make, tmp_path):
    (tmp_path / "a.png").write_bytes(make.picture(1, 40))
    classes = np.zeros((40, 40), np.uint8)
    classes[:, 20:] = 1
    indexed = Image.fromarray(classes, "P")
    indexed.putpalette([9, 9, 9, 255, 0, 0])
    size = Image.open(tmp_path / "a.png").size
    indexed.resize(size, Image.Resampling.NEAREST).save(tmp_path / "label.png")
    segment = model.segmenter([tmp_path / "a.png"] * 2, [tmp_path / "label.png"] * 2, **SETTINGS)
    assert segment.num_classes == 2
    assert segment(tmp_path / "a.png").shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, k: (p[:2], k[:1]), "labels: expected one per picture"),
        (lambda p, k: (p[:1], k[:1]), "2 classes need at least as many labelled pictures, got 1"),
        (lambda p, k: (p[:2], [k[0], k[1][:4]]), "picture of 16x16, got 16x4"),
        (lambda p, k: (p[:2], [k[0], k[1] + 4]), "the classes are 0 to 1, got 0 to 5"),
    ],
)
def test_labels_that_do_not_fit_are_refused(model, discs, change, message):
    pictures, labels = change(*discs)
    with pytest.raises(DataError, match=message):
        model.segmenter(pictures, labels, 2, **SETTINGS)


def test_mean_iou_of_a_known_case():
    labels = torch.tensor([[[0, 0, 1, 1]]])
    assert mean_iou(labels, labels, 3) == 1
    assert mean_iou(torch.tensor([[[0, 1, 1, 1]]]), labels, 2) == pytest.approx((1 / 2 + 2 / 3) / 2)
