"""The formats of crawl that ingest reads: files come in, parts and then pages go out. One module a format."""

from __future__ import annotations

from collections.abc import Mapping

from semantica.episodes.pages import Source
from semantica.episodes.sources.folder import FolderSource
from semantica.episodes.sources.html import HtmlSource
from semantica.episodes.sources.imagefolder import ImageFolderSource
from semantica.episodes.sources.imagenet import ImageNetSource
from semantica.episodes.sources.lsun import LsunSource
from semantica.episodes.sources.mmc4 import Mmc4Source
from semantica.episodes.sources.obelics import ObelicsSource
from semantica.episodes.sources.omnicorpus import OmniCorpusSource
from semantica.episodes.sources.pictures import PicturesSource
from semantica.episodes.sources.sun397 import Sun397Source
from semantica.episodes.sources.warc import WarcSource
from semantica.episodes.sources.webdataset import WebDatasetSource
from semantica.episodes.sources.wit import WitSource

SOURCES: Mapping[str, Source] = {
    # Trees: pages with their pictures beside them.
    "folder": FolderSource(),
    "html": HtmlSource(),
    # Crawls and lists of URLs.
    "warc": WarcSource(),
    "obelics": ObelicsSource(),
    "mmc4": Mmc4Source(),
    "omnicorpus": OmniCorpusSource(),
    "wit": WitSource(),
    "webdataset": WebDatasetSource(),
    # Classes instead of pages: label episodes.
    "pictures": PicturesSource(),
    "imagefolder": ImageFolderSource(),
    "imagenet-train": ImageNetSource("train"),
    "imagenet-val": ImageNetSource("val"),
    "lsun": LsunSource(),
    "sun397": Sun397Source(),
}

LABEL_SOURCES = frozenset({"pictures", "imagefolder", "imagenet-train", "imagenet-val", "lsun", "sun397"})
