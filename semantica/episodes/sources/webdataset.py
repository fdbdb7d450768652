"""webdataset: tar files whose members with the same key form a sample, as written by img2dataset and webdataset's TarWriter.

In: .tar, .tar.gz or .tgz. A member's key is its path up to the first dot of its name. A member with a picture's extension is a
picture; the `json` member holds its origin. A file whose name has no dot, or begins with one, belongs to no sample (webdataset's
rule) and is ignored. Out: the pictures of one page together, when the JSON names the page. img2dataset writes the page only as an
extra column (`save_additional_columns=["page_url"]`); without it, each sample is a page of its own and has_url is False. Nothing is
extracted: pictures are read in place, or kept in memory when the tar is compressed.

The second half reads the members of an uncompressed tar in place, also of a tar inside another tar, which is contiguous too
(`imagenet` uses it). Python's own reader takes the first header that it does not understand for the end. Here, a tar without its
end mark is damaged.
"""

from __future__ import annotations

import io
import json
import logging
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semantica.data.location import Location, location, uri
from semantica.episodes.pages import ImageRef, Page, Part, ReadConfig
from semantica.episodes.quarantine import DamagedFile, Reason, utf8
from semantica.episodes.sources import source
from semantica.episodes.sources.files import (
    decompress,
    label_of,
    list_parts,
    location_of,
    open_part,
    permission_check,
    unreadable_page,
)
from semantica.episodes.sources.remote import Gatherer, page_name, remote_image
from semantica.episodes.sources.tree import Tree, is_picture
from semantica.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = (".tar", ".tar.gz", ".tgz")
# The names of the JSON field with the page's URL; the first that exists is used. `url` is the URL of the picture.
PAGE_URL_KEYS = (
    "page_url", "pageurl", "source_page", "source_page_url", "document_url", "webpage_url", "parent_url", "page",
)  # fmt: skip
MAX_JSON_BYTES = 4 << 20
MAX_HEADER_BYTES = 1 << 20  # of an extended header, which tarfile reads whole
BLOCK = 512  # of a tar
_SAMPLE = re.compile(r"\A((?:.*/)?[^./][^./]*)\.([^/]+)\Z", re.DOTALL)  # webdataset's rule


@dataclass
class _Sample:
    key: str
    offset: int  # of its first member; a key may occur twice
    facts: Any = None  # the content of its JSON
    problem: str = ""
    images: list[ImageRef] = field(default_factory=list)


@source("webdataset")
class WebDatasetSource:
    """The Source of webdataset's tar files."""

    def parts(self, root: Location, settings: ReadConfig) -> list[Part]:
        """One part per tar file."""
        return list_parts(root, SUFFIXES, "tar files")

    def pages(self, root: Location, part: Part, settings: ReadConfig) -> Iterator[Page]:
        """The pages of a tar in the order in which they are complete, and one page with a problem per member that is no file."""
        name, gatherer, without = label_of(root, part), Gatherer(settings.join_window_mb << 20), 0
        with open_part(root, part) as file:
            stream = decompress(file)
            where = uri(location_of(root, part)) if stream is file else ""
            for sample in _samples(stream, name, where, settings):
                if isinstance(sample, Page):
                    yield sample
                    continue
                piece = f"{name}@{sample.offset}"
                page_url, has_url = page_name(_named_page(sample.facts), f"{name}/{sample.key}")
                if sample.problem:
                    yield Page(page_url, (), Reason.PAGE_UNREADABLE, sample.problem, piece=piece, has_url=False)
                elif not has_url or not sample.images:
                    without += not has_url
                    yield Page(page_url, tuple(sample.images), piece=piece, has_url=has_url)
                else:
                    for image in sample.images:
                        yield from gatherer.add(page_url, image, piece)
            yield from gatherer.rest()
        if without:
            log.warning(
                "ingest: %s: %d samples carry no page URL, each is a page of its own; img2dataset carries it when told "
                'save_additional_columns=["page_url"]',
                name,
                without,
            )


def _named_page(facts: object) -> object:
    values = (facts.get(key) for key in PAGE_URL_KEYS) if isinstance(facts, dict) else ()
    return next((value for value in values if value), None)


def _samples(stream: io.BufferedReader, name: str, where: str, settings: ReadConfig) -> Iterator[_Sample | Page]:
    """The samples of a tar, and one page with a problem per member that is neither a file nor a folder."""
    sample, num_bytes = None, 0
    for member in _members(stream, name):
        match = _SAMPLE.match(member.name)
        if member.isdir() or (member.isreg() and not match):
            continue
        if match is None or not member.isreg() or member.issparse():
            yield unreadable_page(
                f"{name}/{utf8(member.name)}@{member.offset}", "a link, device or sparse file in the tar, not read"
            )
            continue
        key, kind = utf8(match[1]), match[2].lower()
        if sample is not None and sample.key != key:
            yield _complete(sample)
            sample = None
        if sample is None:
            sample, num_bytes = _Sample(key, member.offset), 0
        if kind == "json":
            _read_facts(sample, stream, member)
        elif is_picture(member.name):
            fits = num_bytes + member.size <= settings.join_window_mb << 20
            num_bytes += member.size
            sample.images.append(_image(stream, member, f"{name}/{utf8(member.name)}", where, settings, fits))
    if sample is not None:
        yield _complete(sample)


def _image(stream: io.BufferedReader, member: tarfile.TarInfo, url: str, where: str, settings: ReadConfig, fits: bool) -> ImageRef:
    """The picture's place in the tar `where`, or its bytes when `where` is "". fits: there is memory for the bytes."""
    if member.size > settings.max_image_bytes or not (where or fits):
        expected = settings.max_image_bytes if fits else f"{settings.join_window_mb} MB in one sample"
        return ImageRef(url, problem=Reason.TOO_MANY_BYTES, detail=f"expected at most {expected} bytes, got {member.size}")
    if where and member.size:
        return ImageRef(url, where, offset=member.offset_data, length=member.size)
    return ImageRef(url, data=_content(stream, member))


def _read_facts(sample: _Sample, stream: io.BufferedReader, member: tarfile.TarInfo) -> None:
    if member.size > MAX_JSON_BYTES:
        sample.problem = f"expected at most {MAX_JSON_BYTES} bytes of JSON, got {member.size}"
        return
    try:
        sample.facts = json.loads(_content(stream, member))
    except (ValueError, RecursionError) as error:  # no JSON, or nested too deep
        sample.problem = f"expected JSON, got {error}"


def _complete(sample: _Sample) -> _Sample:
    """The sample, with its picture named by the URL in the JSON, if any; a failed download becomes a picture to fetch."""
    facts = sample.facts if isinstance(sample.facts, dict) else {}
    url = facts.get("url")
    if not isinstance(url, str) or not url.strip():
        return sample
    if not sample.images:
        status = utf8(f"{facts.get('status') or 'not in the tar'} {facts.get('error_message') or ''}".strip())
        sample.images.append(remote_image(url, f"not fetched; {status}"))
    elif len(sample.images) == 1:
        [image] = sample.images
        sample.images[0] = ImageRef(
            utf8(url.strip()), image.path, image.problem, image.detail, image.data, image.offset, image.length
        )
    return sample


# --- the tar itself ---


class _Headers(io.RawIOBase):
    """The stream for tarfile, which may read only headers of a sane size. Pictures are read from the stream directly."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self.stream = stream

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {size}")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()


def _members(stream: io.BufferedReader, name: str) -> Iterator[tarfile.TarInfo]:
    """The members of a tar in their order. Raises DamagedFile unless it ends with the end mark, a block of zeros.

    tarfile itself takes an invalid header, or a file that stops between two members, for the end.
    """
    try:
        archive = tarfile.open(fileobj=_Headers(stream), mode="r:", errorlevel=1)  # noqa: SIM115
        while (member := archive.next()) is not None:
            yield member
            archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps every header in memory
    except (ValueError, OverflowError) as error:  # numbers in extended headers
        raise DamagedFile(name, f"no tar header: {error}") from None
    stream.seek(archive.offset)
    if stream.read(BLOCK) != bytes(BLOCK):
        raise DamagedFile(name, f"no tar header at byte {archive.offset}, nor the mark of the end")


def _content(stream: io.BufferedReader, member: tarfile.TarInfo) -> bytes:
    """The bytes of a member. Raises EOFError when the tar ends inside it."""
    stream.seek(member.offset_data)
    data = stream.read(member.size)
    if len(data) < member.size:
        raise EOFError(f"expected {member.size} bytes of {utf8(member.name)}, got {len(data)}")
    return data


BLOCK_BYTES = 1 << 18  # read-ahead of a remote tar when only headers are needed; the libraries' default is megabytes


def open_tar(tree: Tree, name: str) -> io.BufferedReader:
    """The tar in the tree's root, opened for random access. Raises DamagedFile when the permission is missing."""
    file = tree.image_ref(name)  # the same rule as for pictures: never a file outside the root
    if file.problem:
        raise DataError(f"ingest: {tree.root / name}: expected a file in the root, got {file.problem} ({file.detail})")
    where = location(file.path)
    with permission_check(name):
        if isinstance(where, Path):
            return where.open("rb")
        return io.BufferedReader(where.fs.open(where.path, "rb", block_size=BLOCK_BYTES))


def tar_members(
    stream: io.BufferedReader, where: str, start: int, end: int, *, is_slice: bool = False
) -> Iterator[tarfile.TarInfo]:
    """The members of the uncompressed tar in bytes start..end of the stream. is_slice: of a larger tar, so without an end mark.

    Raises DamagedFile when the bytes are no tar, end too early, or hold a member that reaches beyond the end. (Python's own reader
    takes the first header that it does not understand for the end.)
    """
    at = start
    try:
        stream.seek(start)
        archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 - the stream belongs to the caller
        while not (is_slice and at >= end) and (member := archive.next()) is not None:
            if member.offset_data + member.size > end:
                raise DamagedFile(
                    where, f"{utf8(member.name)}: expected {member.size} bytes, the file ends before; it is cut short"
                )
            yield member
            at = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DamagedFile(where, f"expected a tar, got {error} in bytes {start}..{end}") from None
    if not is_slice:
        stream.seek(at)
        if stream.read(max(0, min(tarfile.BLOCKSIZE, end - at))) != bytes(tarfile.BLOCKSIZE):
            raise DamagedFile(where, f"expected a header or the end mark at byte {at}, got neither; it is cut short or damaged")


def tar_pictures(members: Iterable[tarfile.TarInfo], where: str) -> dict[str, tarfile.TarInfo]:
    """The pictures among the members, by name. Raises DamagedFile when two members have the same name."""
    pictures: dict[str, tarfile.TarInfo] = {}
    for member in members:
        if is_picture(member.name) and not member.isdir() and pictures.setdefault(member.name, member) is not member:
            raise DamagedFile(where, f"expected every name once, got {utf8(member.name)} twice")
    return pictures


def tar_image(path: str, url: str, member: tarfile.TarInfo) -> ImageRef:
    """The reference to a member of the uncompressed tar at `path`: the place of its bytes, or a problem."""
    if not member.isfile() or member.issparse():
        return ImageRef(url, problem=Reason.UNREADABLE_FILE, detail="expected the bytes of a file, got a link or a sparse file")
    if not member.size:  # a length of 0 in an ImageRef would mean all bytes from the offset on
        return ImageRef(url, problem=Reason.EMPTY_FILE, detail="expected an image, got 0 bytes")
    return ImageRef(url, path, offset=member.offset_data, length=member.size)
