"""Which side a picture goes to: by the seed and the ID alone, the same one wherever it is shown."""

import numpy as np

from semantica.episodes.clean import image_id
from semantica.episodes.ingest import episode_id, is_held_out
from semantica.episodes.pages import Page
from tests.episodes.ingesting import census_of, held, ingest, noise, reasons, settings_for


def test_a_training_episode_that_gives_no_pair_is_quarantined_but_one_picture_can_be_held_out(pool):
    page = Page("p", (pool["good0"], pool["empty"]))
    result = ingest([page], settings_for())
    assert result.train.num_rows == 0
    assert reasons(result) == {"too_few_images": 1, "empty_file": 1}
    held_out = ingest([page], settings_for(held_out_share=0.999999))
    assert held(held_out.held_out) == [image_id(noise(0))]


def test_the_split_depends_on_the_seed_and_the_id_alone_and_keeps_its_share():
    for split_by in ("image", "page"):
        sides = {}
        for seed in (0, 1):
            config = settings_for(split_by=split_by, held_out_share=0.15, seed=seed)
            sides[seed] = [is_held_out(Page(f"p{i}", ()), f"{i:032x}", config) for i in range(4000)]
            assert abs(np.mean(sides[seed]) - 0.15) < 0.02  # 3.5 standard deviations
        assert sides[0] != sides[1]
        larger = settings_for(split_by=split_by, held_out_share=0.3)
        both = [is_held_out(Page(f"p{i}", ()), f"{i:032x}", larger) for i in range(4000)]
        assert all(now for before, now in zip(sides[0], both, strict=True) if before)  # a larger share only adds


def test_split_by_image_sends_a_picture_to_one_side_on_every_page():
    config = settings_for(split_by="image", held_out_share=0.5)
    name = image_id(noise(3))
    assert len({is_held_out(Page(f"p{i}", ()), name, config) for i in range(50)}) == 1


def test_a_held_out_page_does_not_show_what_a_training_page_shows(pool):
    config = settings_for(held_out_share=0.5)
    pages = [Page(f"p{i}", (pool["good0"], pool[f"good{i + 1}"])) for i in range(5)]
    sides = [is_held_out(page, "", config) for page in pages]
    assert len(set(sides)) == 2
    result = ingest(pages, config, census_of(pages, config=config))
    assert reasons(result) == {"in_training": sum(sides)}
    assert held(result.held_out) == [image_id(noise(i + 1)) for i in range(5) if sides[i]]


def test_pieces_of_a_page_are_episodes_of_their_own_on_one_side():
    config = settings_for(held_out_share=0.5)
    for url in ("a", "b", "c", "d"):
        assert len({is_held_out(Page(url, (), piece=piece), "", config) for piece in ("", "00001", "00002")}) == 1
    assert len({episode_id("lsun", "church", piece) for piece in ("", "00000", "00001")}) == 3
