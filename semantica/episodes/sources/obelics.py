"""OBELICS: Parquet files of web documents, whose pictures are URLs (Laurençon et al. 2023; HuggingFaceM4/OBELICS).

A row holds `images` and `texts`, two lists of the same length, where exactly one of the two is not null at each index. It also
holds two JSON texts: `general_metadata`, an object with the page's `url`, or `[]`; and `metadata`, a list with one object per
picture, whose `document_url` is the page's URL when `general_metadata` has none. A file is cut into parts by its row groups.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from semantica.data.location import Location
from semantica.episodes.pages import Page, Part, ReadConfig
from semantica.episodes.sources import source
from semantica.episodes.sources.files import label_of, unreadable_page
from semantica.episodes.sources.remote import page_name, unique_images
from semantica.episodes.sources.tables import Columns, is_image_list, parquet_parts, read_rows, table_images


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


COLUMNS: Columns = {
    "images": (is_image_list, "a list of URLs"),
    "metadata": (_is_text, "JSON text"),
    "general_metadata": (_is_text, "JSON text"),
}


@source("obelics")
class ObelicsSource:
    """The Source of OBELICS."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of row groups of the Parquet files under the root."""
        return parquet_parts(root, settings, "OBELICS files")

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """One page per row. A page without a URL is named by its file and row."""
        for number, row in read_rows(root, part, COLUMNS):
            yield _page(row, f"{label_of(root, part)}#{number}", settings)


def _page(row: dict[str, Any] | str, name: str, settings: ReadConfig) -> Page:
    if isinstance(row, str):
        return unreadable_page(name, row)
    if not isinstance(row["images"], list):
        return unreadable_page(name, "images: expected a list, got null")
    try:
        url = _page_url(row)
    except (ValueError, RecursionError) as error:  # no JSON, or nested too deep
        return unreadable_page(name, f"metadata: expected JSON, got {error}")
    page_url, has_url = page_name(url, name)
    return Page(page_url, unique_images(table_images(row["images"], name, settings)), piece=name, has_url=has_url)


def _page_url(row: dict[str, Any]) -> object:
    """The URL of the document; None when neither column has one. Raises ValueError or RecursionError."""
    general = json.loads(row["general_metadata"] or "[]")
    if isinstance(general, dict) and general.get("url"):
        return general["url"]
    pictures = json.loads(row["metadata"] or "[]")
    named = (picture.get("document_url") for picture in pictures if isinstance(picture, dict)) if isinstance(pictures, list) else ()
    return next((url for url in named if url), None)
