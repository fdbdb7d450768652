"""WIT: tab-separated tables of Wikipedia's pictures, one picture per row (Srinivasan et al. 2021; google-research-datasets/wit).

In: .tsv or .tsv.gz with a header; of its 17 columns only `page_url` and `image_url` are read. A text with line breaks is quoted, as
in CSV (issue 3 of that repository). The rows of a page need not be adjacent, and each language has pages of its own. Out: pages
gathered within a window of `join_window_mb`. A file is one part.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from semantica.data.location import Location
from semantica.episodes.pages import Page, Part, ReadConfig
from semantica.episodes.quarantine import DamagedFile, utf8
from semantica.episodes.sources import source
from semantica.episodes.sources.files import MAX_LINE_BYTES, decompress, label_of, lines, list_parts, open_part, unreadable_page
from semantica.episodes.sources.remote import Gatherer, remote_image

SUFFIXES = (".tsv", ".tsv.gz")
MAX_FIELD_CHARS = 1 << 20  # of one text; an unclosed quotation mark swallows rows up to this length


@source("wit")
class WitSource:
    """The Source of WIT."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """One part per file."""
        return list_parts(root, SUFFIXES, "WIT files")

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The pages of a file in the order in which they are complete, and one page with a problem per bad row."""
        name = label_of(root, part)
        gatherer = Gatherer(settings.join_window_mb << 20)
        with open_part(root, part) as stream:
            rows = _rows(decompress(stream), name)
            header = next(rows, ("", "nothing"))[1]
            if isinstance(header, str) or not {"page_url", "image_url"} <= set(header):
                raise DamagedFile(name, f"expected a header with page_url and image_url, got {str(header)[:200]}")
            page_at, image_at = header.index("page_url"), header.index("image_url")
            for where, row in rows:
                if isinstance(row, str):
                    yield unreadable_page(where, row)
                elif len(row) != len(header):
                    yield unreadable_page(where, f"expected {len(header)} columns, got {len(row)}")
                elif not row[page_at].strip():
                    yield Page(where, (remote_image(row[image_at]),), piece=where, has_url=False)
                else:
                    yield from gatherer.add(utf8(row[page_at].strip()), remote_image(row[image_at]), where)
            yield from gatherer.rest()


def _rows(stream: io.BufferedReader, name: str) -> Iterator[tuple[str, list[str] | str]]:
    """(name, columns) of every row that is not blank, the header first. For a bad row, a text says why instead of the columns."""
    csv.field_size_limit(MAX_FIELD_CHARS)  # a setting of the whole process; its default is too small for the texts of WIT
    reader = csv.reader(_texts(stream, name), delimiter="\t")
    while True:
        where = f"{name}#{reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield where, f"up to line {reader.line_num}: {error}"
            continue
        if row:
            yield where, row


def _texts(stream: io.BufferedReader, name: str) -> Iterator[str]:
    """The lines as text; bytes that are not UTF-8 become surrogates."""
    for number, line in lines(stream):
        if line is None:
            raise DamagedFile(name, f"expected lines of at most {MAX_LINE_BYTES} bytes, got more in line {number}")
        yield line.decode("utf-8", "surrogateescape").removeprefix("\ufeff" if number == 1 else "")
