"""The formats of crawl that ingest reads: files come in, parts and then pages go out. One module a format."""

from __future__ import annotations

from collections.abc import Mapping

from semantica.episodes.pages import Source
from semantica.episodes.sources.folder import FolderSource
from semantica.episodes.sources.html import HtmlSource

SOURCES: Mapping[str, Source] = {"folder": FolderSource(), "html": HtmlSource()}
