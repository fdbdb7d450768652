"""Evaluation sets: which pictures there are, what is chosen of them, and what is refused."""

import pytest

from semantica.data.pictures import PictureRef, StoredPictures, decode
from semantica.errors import DataError
from semantica.evaluation.sets import open_set

SIZES = {"cats": 5, "dogs": 4, "pond": 3}


def test_every_picture_has_its_label_and_its_place(a_set):
    data = a_set(SIZES)
    assert len(data.pictures) == 12
    assert data.labels == ("cats", "dogs", "pond")
    assert [(p.file, p.group) for p in data.pictures.values()] == [(0, group) for group in (0,) * 5 + (1,) * 4 + (2,) * 3]


def test_the_same_pictures_make_the_same_set_and_others_another(a_set):
    again = open_set("again", a_set(SIZES, name="a").encodings)
    assert again.hash == a_set(SIZES, name="b").hash
    assert again.hash != a_set(SIZES, name="c", seed=1).hash


def test_stored_pictures_are_read_by_place_in_the_order_that_is_asked_for(a_set):
    data = a_set(SIZES)
    wanted = {name: data.pictures[name] for name in list(data.pictures)[::-2]}
    found = StoredPictures(data.encodings).read(wanted.values())
    assert list(found) == list(wanted)
    assert len({decode(value, 24).numpy().tobytes() for value in found.values()}) == len(wanted)
    with pytest.raises(DataError, match="no longer holds the picture"):
        StoredPictures(data.encodings).read([PictureRef("f" * 32, "", 0, 0)])


def test_the_choice_of_conditioning_images_depends_on_the_seed_alone(a_set):
    data = a_set(SIZES)
    first = data.conditions(6, 0)
    assert first == data.conditions(12, 0)[:6]  # a larger evaluation keeps the images of a smaller one
    assert first != data.conditions(6, 1)
    assert len({picture.image_id for picture, _ in first}) == 6


def test_the_reference_is_all_or_the_others_or_a_random_choice(a_set):
    data = a_set(SIZES)
    everything = data.reference((), None, 0)
    assert everything == sorted(data.pictures)
    some = [picture.image_id for picture, _ in data.conditions(4, 0)]
    assert set(data.reference(some, None, 0)) == set(everything) - set(some)
    assert len(data.reference((), 5, 0)) == 5
    assert data.reference((), 5, 0) != data.reference((), 5, 1)
    with pytest.raises(DataError, match="1 pictures that are no conditioning images, at least 2 are needed; ask for fewer"):
        data.reference(everything[:-1], None, 0)


def test_a_random_choice_of_the_reference_is_not_the_conditioning_images(a_set):
    data = a_set({"cats": 100, "dogs": 100})
    chosen = {picture.image_id for picture, _ in data.conditions(100, 0)}
    both = len(chosen & set(data.reference((), 100, 0)))
    assert 35 < both < 65  # of two independent choices of half: 50 ± 3.5


def test_pictures_that_are_stored_smaller_than_samples_are_drawn_are_refused(a_set):
    data = a_set(SIZES)
    data.check_side(24)
    with pytest.raises(DataError, match=r"the pictures of set are stored with 24 px, and samples have 32 px; ingest them with"):
        data.check_side(32)


@pytest.mark.parametrize("sizes", [{}, {"cats": 1}])
def test_fewer_than_two_pictures_are_refused(a_set, sizes):
    with pytest.raises(DataError, match=rf"set has {len(sizes)} usable pictures, at least 2 are needed"):
        a_set(sizes)


def test_one_shot_refuses_a_single_class_and_a_class_without_a_picture(a_set):
    with pytest.raises(DataError, match="one-shot needs at least 2 classes, one has 1; give a folder of class folders"):
        a_set({"cats": 4}, name="one").one_a_class(2, 0)
    with pytest.raises(DataError, match="one-shot needs a picture of every class, two has none that can be used of 'unicorns'"):
        a_set(SIZES, name="two", labels=[*SIZES, "unicorns"]).one_a_class(2, 0)
