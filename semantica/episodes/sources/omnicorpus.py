"""OmniCorpus-CC: Parquet files of web documents, whose pictures are URLs (Li et al. 2024; OpenGVLab/OmniCorpus-CC).

A row holds `images` and `texts`, aligned lists where one of the two is null at each index; the struct `general_metadata` with the
page's `url`; and `metadata`, a list with one struct per picture. A file is cut into parts by its row groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from semantica.data.location import Location
from semantica.episodes.pages import Page, Part, ReadConfig
from semantica.episodes.sources import source
from semantica.episodes.sources.files import label_of, unreadable_page
from semantica.episodes.sources.remote import page_name, unique_images
from semantica.episodes.sources.tables import Columns, is_image_list, parquet_parts, read_rows, table_images


def _has_url(kind: Any) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("url") >= 0)


COLUMNS: Columns = {
    "images": (is_image_list, "a list of URLs"),
    "general_metadata": (_has_url, "a struct with the field url"),
}


@source("omnicorpus")
class OmniCorpusSource:
    """The Source of OmniCorpus-CC."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of row groups of the Parquet files under the root."""
        return parquet_parts(root, settings, "OmniCorpus files")

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """One page per row. A page without a URL is named by its file and row."""
        for number, row in read_rows(root, part, COLUMNS):
            yield _page(row, f"{label_of(root, part)}#{number}", settings)


def _page(row: dict[str, Any] | str, name: str, settings: ReadConfig) -> Page:
    if isinstance(row, str):
        return unreadable_page(name, row)
    if not isinstance(row["images"], list):
        return unreadable_page(name, "images: expected a list, got null")
    page_url, has_url = page_name((row["general_metadata"] or {}).get("url"), name)
    return Page(page_url, unique_images(table_images(row["images"], name, settings)), piece=name, has_url=has_url)
