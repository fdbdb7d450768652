"""The files of fetched pictures: URLs go in, files NAME-00000.parquet, NAME-00001.parquet, ... come out, one per batch of URLs.

A file is written whole or not at all. A batch whose file exists and holds the expected URLs is not fetched again, even if some of
them failed. An interrupted batch starts again. To fetch a batch anew, delete its file. While a batch is fetched, its bodies lie in
a temporary file, so memory holds only the bodies of the fetcher and one row group.

`fetchable_urls` gives the URLs of a page that are to be fetched. `resolve` gives the page with the fetched pictures in it.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from semantica.data.durable import atomic_file
from semantica.data.location import Location
from semantica.episodes.fetch import Fetched
from semantica.episodes.fetch.fetcher import Fetcher
from semantica.episodes.fetch.http import OPT_OUT
from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.quarantine import Reason, utf8

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        pa.field("url", pa.string(), nullable=False),  # as the page names it
        pa.field("final_url", pa.string(), nullable=False),
        pa.field("status", pa.int32(), nullable=False),
        pa.field("data", pa.large_binary()),  # null when there is a problem
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("problem", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
GROUP_BYTES = 1 << 24  # a row group ends when its bodies have this many bytes
_CACHED_GROUPS = 4  # the pictures of one page lie together, except those that several pages share
_HTTP = re.compile(r"https?://", re.IGNORECASE)


def fetch_into(folder: Location, name: str, urls: Iterable[str], fetcher: Fetcher, batch_size: int) -> dict[str, int]:
    """Fetch the URLs into the files `name` of the folder, and return counts over all of these files, also those of earlier calls.

    num_urls = num_fetched + the sum of num_REASON over the problems that occur; num_bytes: of all bodies; num_batches. A URL given
    twice counts once. The counts are the same with and without an interruption.
    """
    counts: Counter[str] = Counter(num_urls=0, num_fetched=0, num_bytes=0, num_batches=0)
    for batch in _batches(urls, batch_size):
        path = _path(folder, name, counts["num_batches"])
        if not _holds(path, batch):
            _fetch_batch(path, batch, fetcher)
        with path.open("rb") as stream:
            table = pq.read_table(stream, columns=["num_bytes", "problem"])
        problems = Counter(table["problem"].to_pylist())
        counts.update({f"num_{problem}" if problem else "num_fetched": num for problem, num in problems.items()})
        counts.update(num_urls=len(batch), num_bytes=sum(table["num_bytes"].to_pylist()), num_batches=1)
    return dict(counts)


def _path(folder: Location, name: str, index: int) -> Location:
    return folder / f"{name}-{index:05d}.parquet"


def _batches(urls: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` URLs, the last one possibly shorter. Repeated URLs are left out."""
    seen: set[str] = set()
    batch: list[str] = []
    for url in map(utf8, urls):
        if url not in seen:
            seen.add(url)
            batch.append(url)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _holds(path: Location, urls: Sequence[str]) -> bool:
    """True when the file is whole and holds these URLs, in this order."""
    if not path.exists():
        return False
    try:
        with path.open("rb") as stream:
            file = pq.ParquetFile(stream)
            same: bool = file.schema_arrow.equals(SCHEMA) and file.read(columns=["url"])["url"].to_pylist() == list(urls)
    except (OSError, pa.ArrowException) as error:
        log.warning("fetch: %s is damaged (%s); its URLs are fetched again", path, error)
        return False
    if not same:
        log.warning("fetch: %s holds other URLs than are expected; they are fetched again", path)
    return same


def _fetch_batch(path: Location, urls: Sequence[str], fetcher: Fetcher) -> None:
    """Fetch the URLs and write their file, in their order."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryFile() as bodies:
        for fetched in fetcher.fetch_all(urls):
            row = {name: getattr(fetched, name) for name in ("url", "status", "problem", "detail")}
            row |= {"final_url": utf8(fetched.final_url), "num_bytes": len(fetched.data or b""), "offset": bodies.tell()}
            bodies.write(fetched.data or b"")
            rows[fetched.url] = row
        with atomic_file(path) as partial, pq.ParquetWriter(partial, SCHEMA, compression="none") as writer:
            for group in _groups([rows[url] for url in urls]):
                writer.write_table(pa.Table.from_pylist([_with_body(row, bodies) for row in group], schema=SCHEMA))


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Runs of rows whose bodies have GROUP_BYTES together, the last one possibly less."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += row["num_bytes"]
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _with_body(row: dict[str, Any], bodies: IO[bytes]) -> dict[str, Any]:
    bodies.seek(row["offset"])
    data = None if row["problem"] else bodies.read(row["num_bytes"])
    return {name: row[name] for name in SCHEMA.names if name != "data"} | {"data": data}


class FetchedPictures:
    """The results that `fetch_into` wrote under a name, by URL. Memory holds an index of the URLs and a few row groups."""

    def __init__(self, folder: Location, name: str) -> None:
        self._paths: list[Location] = []
        self._rows: dict[str, tuple[int, int, int]] = {}  # URL: (file, row group, row)
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        while (path := _path(folder, name, len(self._paths))).exists():
            with path.open("rb") as stream:
                file = pq.ParquetFile(stream)
                for group in range(file.num_row_groups):
                    for row, url in enumerate(file.read_row_group(group, ["url"])["url"].to_pylist()):
                        self._rows.setdefault(url, (len(self._paths), group, row))
            self._paths.append(path)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, url: str) -> Fetched | None:
        """The result for the URL, or None when it was never requested."""
        place = self._rows.get(utf8(url))
        if place is None:
            return None
        file, group, row = place
        values = self._group(file, group).slice(row, 1).to_pylist()[0]
        del values["num_bytes"]
        return Fetched(**values)

    def _group(self, file: int, group: int) -> pa.Table:
        table = self._groups.get((file, group))
        if table is None:
            with self._paths[file].open("rb") as stream:
                table = pq.ParquetFile(stream).read_row_group(group)
            self._groups[file, group] = table
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((file, group))
        return table


def fetchable_urls(page: Page, *, respect_opt_out: bool = True) -> list[str]:
    """The URLs of the page's pictures that are to be fetched; none when the page opts out of collection or training."""
    if page.problem or (respect_opt_out and OPT_OUT.intersection(page.opt_out)):
        return []
    return list(dict.fromkeys(image.url for image in page.images if _is_remote(image)))


def resolve(page: Page, fetched: FetchedPictures, *, respect_opt_out: bool = True) -> Page:
    """The page with the result for each remote picture: its bytes, or the problem that the fetcher met.

    A picture whose URL was never requested stays as it was.
    """
    if page.problem:
        return page
    opt_out = sorted(OPT_OUT.intersection(page.opt_out)) if respect_opt_out else []
    images = (_resolve_image(image, opt_out, fetched) if _is_remote(image) else image for image in page.images)
    return replace(page, images=tuple(images))


def _is_remote(image: ImageRef) -> bool:
    return image.problem in (Reason.REMOTE_URL, Reason.NOT_IN_ARCHIVE) and _HTTP.match(image.url) is not None


def _resolve_image(image: ImageRef, opt_out: Sequence[str], fetched: FetchedPictures) -> ImageRef:
    if opt_out:
        return ImageRef(image.url, problem=Reason.OPTED_OUT, detail=f"not fetched: the page says {', '.join(opt_out)}")
    result = fetched.find(image.url)
    if result is None:
        return image
    return ImageRef(image.url, problem=result.problem, detail=result.detail, data=result.data)
