"""Pictures without pages: the files directly in one folder, or the rows of Parquet files, one picture per row.

In: a folder, or Parquet files with a column of bytes (`image` or `bytes`; also the struct {bytes, path} of Hugging Face's
`datasets`) and optionally a column of labels (the first of `label`, `class`, `page_url`). Out: label episodes (see `labels`) whose
page_url is the label, or "." without a label. Evaluation sets are ingested by this source.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from semantica.data.location import Location
from semantica.episodes.pages import ImageRef, Page, Part, ReadConfig
from semantica.episodes.quarantine import DamagedFile, Reason, utf8
from semantica.episodes.sources import source
from semantica.episodes.sources.files import label_of, open_part, unreadable_page
from semantica.episodes.sources.labels import folder_class, folder_parts, label_pages, pictures_in
from semantica.episodes.sources.tables import Columns, parquet_parts, read_rows
from semantica.episodes.sources.tree import PICTURES, open_tree, what_is_there
from semantica.errors import DataError

NO_LABEL = "."
_BYTES, _LABELS = ("image", "bytes"), ("label", "class", "page_url")
_ROWS_HELD = 512  # the most rows in memory, whose pictures wait for others of their label


@source("pictures", labels=True)
class PicturesSource:
    """Label episodes of one folder of pictures, or of Parquet files."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """Runs of pictures. Raises DataError when there are neither pictures nor Parquet files directly in the root."""
        if root.is_file():
            return parquet_parts(root, settings, "Parquet files of pictures")
        tree = open_tree(root)
        if pictures := pictures_in(tree, ""):
            return folder_parts({"": pictures}, settings)
        if any(name.lower().endswith(".parquet") for name in tree.listing("").files):
            return parquet_parts(root, settings, "Parquet files of pictures")
        raise DataError(
            f"ingest: {root}: expected pictures ({' '.join(sorted(PICTURES))}) or .parquet files directly in it, "
            f"found {what_is_there(tree)}"
        )

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The label episodes of the part. Raises DamagedFile for a file that is not Parquet with pictures."""
        if root.is_file() or part.paths[0].lower().endswith(".parquet"):
            return _table_pages(root, part, settings)
        tree = open_tree(root)
        return label_pages([folder_class(tree, "", NO_LABEL, pictures_in(tree, ""))], part.start, part.stop, settings)


def _table_pages(root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
    """Pages of up to images_per_label pictures of one label, in the order of rows. Labels with distant rows give smaller pages."""
    name = label_of(root, part)
    picture, label = _columns(root, part)
    columns: Columns = {picture: (_is_picture, "bytes, or {bytes, path}")}
    if label:
        columns = {**columns, label: (_is_label, "text or a number")}
    waiting: dict[str, list[ImageRef]] = {}
    num_pages = 0

    def page(text: str) -> Page:
        nonlocal num_pages
        num_pages += 1
        return Page(text, tuple(waiting.pop(text)), piece=f"{name}#{part.start}-{num_pages:05d}")

    for number, row in read_rows(root, part, columns):
        where = f"{name}#{number}"
        if isinstance(row, str):
            yield unreadable_page(where, row)
            continue
        text = utf8(str(row[label])) if label and row[label] is not None else NO_LABEL
        images = waiting.setdefault(text, [])
        images.append(_reference(row[picture], where, settings))
        if len(images) == settings.images_per_label:
            yield page(text)
        elif sum(map(len, waiting.values())) >= _ROWS_HELD:
            for label_text in list(waiting):
                yield page(label_text)
    for label_text in list(waiting):
        yield page(label_text)


def _columns(root: Location, part: Part) -> tuple[str, str]:
    """(the column of pictures, the column of labels or ""). Raises DamagedFile when the first is missing."""
    with open_part(root, part) as stream:
        names = pq.read_schema(stream).names
    picture = next((name for name in _BYTES if name in names), "")
    if not picture:
        raise DamagedFile(label_of(root, part), f"expected a column {' or '.join(_BYTES)} with pictures, got {', '.join(names)}")
    return picture, next((name for name in _LABELS if name in names), "")


def _reference(value: Any, where: str, settings: ReadConfig) -> ImageRef:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        return ImageRef(where, problem=Reason.EMPTY_FILE, detail="the cell holds no bytes")
    if len(data) > settings.max_image_bytes:
        detail = f"expected at most {settings.max_image_bytes} bytes, got {len(data)}"
        return ImageRef(where, problem=Reason.TOO_MANY_BYTES, detail=detail)
    return ImageRef(where, data=data)


def _is_picture(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_dictionary)
    return any(fits(kind) for fits in plain)
