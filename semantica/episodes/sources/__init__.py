"""The formats of crawl that ingest reads: a folder of files comes in, a list of pages goes out. One module a format."""

from __future__ import annotations

from collections.abc import Mapping

from semantica.episodes.pages import Source
from semantica.episodes.sources.folder import folder_pages
from semantica.episodes.sources.html import html_pages

SOURCES: Mapping[str, Source] = {"folder": folder_pages, "html": html_pages}
