"""MMC4: JSON lines, one web document per line, whose pictures are URLs (Zhu et al. 2023; allenai/mmc4, all of its subsets).

A line holds the page's `url` and `image_info`, a list of objects with the picture's `raw_url`. Its sentences and similarities are
not read. A file is one part: .jsonl, .jsonl.gz, or .jsonl.zip as it is distributed.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any, cast

from semantica.data.location import Location
from semantica.episodes.pages import ImageRef, Page, Part, ReadConfig
from semantica.episodes.quarantine import DamagedFile, utf8
from semantica.episodes.sources import source
from semantica.episodes.sources.files import MAX_LINE_BYTES, decompress, label_of, lines, list_parts, open_part, unreadable_page
from semantica.episodes.sources.remote import page_name, remote_image, unique_images

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zip")
MAX_BAD_LINES = 100  # a file that starts with this many bad lines has another format


@source("mmc4")
class Mmc4Source:
    """The Source of MMC4."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """One part for every file."""
        return list_parts(root, SUFFIXES, "MMC4 files")

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """One page per line. A page without a URL is named by its file and line."""
        name = label_of(root, part)
        bad: list[Page] | None = []  # None after the first good line
        with open_part(root, part) as stream:
            for where, line in _lines(stream, name):
                page = _page(line, where)
                if bad is not None and page.problem:
                    bad.append(page)
                    if len(bad) == MAX_BAD_LINES:
                        break
                    continue
                yield from bad or ()
                bad = None
                yield page
        if bad:
            raise DamagedFile(name, f"no line is a document of MMC4; the first: {bad[0].detail}")


def _lines(stream: io.BufferedReader, name: str) -> Iterator[tuple[str, bytes | None]]:
    """(name, content) of every line that is not blank. Raises DamagedFile for a zip file without a file of JSON lines."""
    if stream.peek(4)[:4] != b"PK\x03\x04":
        for number, line in lines(decompress(stream)):
            if line is None or line.strip():
                yield f"{name}#{number}", line
        return
    with zipfile.ZipFile(stream) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".jsonl")]
        # The Finder of macOS adds a folder of this name, whose files are not JSON.
        members = [member for member in members if not member.filename.startswith("__MACOSX/")]
        if not members or any(member.flag_bits & 1 for member in members):
            raise DamagedFile(name, "expected a zip file that holds a file of JSON lines, not encrypted")
        for member in members:
            with archive.open(member) as inside:
                for number, line in lines(cast(io.BufferedIOBase, inside)):
                    if line is None or line.strip():
                        yield f"{name}/{utf8(member.filename)}#{number}", line


def _page(line: bytes | None, name: str) -> Page:
    if line is None:
        return unreadable_page(name, f"expected a line of at most {MAX_LINE_BYTES} bytes")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # no JSON, or nested too deep
        return unreadable_page(name, f"expected JSON, got {error}")
    if not isinstance(row, dict) or not isinstance(row.get("image_info"), list):
        return unreadable_page(name, "expected an object with the list image_info")
    page_url, has_url = page_name(row.get("url"), name)
    return Page(page_url, unique_images(_image(picture) for picture in row["image_info"]), piece=name, has_url=has_url)


def _image(picture: Any) -> ImageRef:
    return remote_image(picture.get("raw_url") if isinstance(picture, dict) else picture)
