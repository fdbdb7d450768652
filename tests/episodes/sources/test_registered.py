"""A source that this file alone adds: registered, accepted by the configuration, and ingested like every other."""

import pytest

from semantica.config import from_dict
from semantica.episodes.images import normalise
from semantica.episodes.ingest import IngestConfig, ingest_pages
from semantica.episodes.pages import ImageRef, Page, Part, ReadConfig
from semantica.episodes.sources import _LABELLED, SOURCES, label_sources, source
from semantica.errors import ConfigError


@pytest.fixture
def toy(make):
    """A source of one page with two numbered pictures, registered while the test runs."""
    pictures = [ImageRef(f"http://x/{number}", data=make.picture(number, side=64)) for number in (1, 2)]

    @source("toy", labels=True)
    class ToySource:
        def parts(self, root, settings):
            return [Part(("",))]

        def pages(self, root, part, settings):
            yield Page("http://x/", tuple(pictures))

    yield ToySource
    del SOURCES._parts["toy"]
    _LABELLED.remove("toy")


def test_a_toy_source_is_ingested_by_its_name(toy, tmp_path):
    config = from_dict(IngestConfig, {"source": "toy", "drop_near_duplicates": False, "held_out_share": 0.0})
    part = SOURCES[config.source].parts(tmp_path, ReadConfig())[0]
    pages = SOURCES[config.source].pages(tmp_path, part, ReadConfig())
    (page,) = ingest_pages(pages, None, config, lambda data: normalise(data, config.image))
    assert page.train["source"] == "toy"
    assert [image["url"] for image in page.train["images"]] == ["http://x/1", "http://x/2"]
    assert "toy" in label_sources()


def test_a_source_that_nobody_registered_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"source 'foldr' is unknown; did you mean 'folder'\?"):
        IngestConfig(source="foldr")
