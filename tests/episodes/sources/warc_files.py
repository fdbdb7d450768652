"""WARC files written by warcio, and the pages that the WARC source makes of them."""

import io

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from semantica.episodes.pages import ReadConfig, Source
from semantica.episodes.sources.warc import WarcSource

PNG = b"\x89PNG\r\n\x1a\n"


class Archive:
    """A WARC file in memory, written by warcio."""

    def __init__(self, compress=True):
        self.stream = io.BytesIO()
        self.writer = WARCWriter(self.stream, gzip=compress)
        self.writer.write_record(self.writer.create_warcinfo_record("a.warc", {"software": "test"}))

    def response(self, url, content_type, body, *headers, status="200 OK"):
        http = StatusAndHeaders(status, [("Content-Type", content_type), *headers], protocol="HTTP/1.1")
        record = self.writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=http)
        self.writer.write_record(record)
        return self

    def page(self, url, *sources, head="", headers=()):
        images = "".join(f'<img src="{source}">' for source in sources)
        body = f"<!doctype html><head><meta charset=utf-8>{head}</head><body>{images}</body>".encode()
        return self.response(url, "text/html; charset=utf-8", body, *headers)

    def picture(self, url, body):
        return self.response(url, "image/png", body)

    def redirect(self, url, target, status="301 Moved Permanently"):
        return self.response(url, "text/html", b"moved", ("Location", target), status=status)

    def revisit(self, url, refers_to):
        http = StatusAndHeaders("200 OK", [("Content-Type", "image/png")], protocol="HTTP/1.1")
        self.writer.write_record(
            self.writer.create_revisit_record(url, "sha1:" + "A" * 32, refers_to, "2026-01-01T00:00:00Z", http_headers=http)
        )
        return self

    def record(self, url, kind, content_type, body):
        record = self.writer.create_warc_record(url, kind, payload=io.BytesIO(body), warc_content_type=content_type)
        self.writer.write_record(record)
        return self

    @property
    def data(self):
        return self.stream.getvalue()


def read(root, **options):
    source, settings = WarcSource(), ReadConfig(**options)
    assert isinstance(source, Source)
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]


def pages_of(folder, archive, **options):
    (folder / "a.warc").write_bytes(archive.data)
    return read(folder, **options)


def pictures(page):
    return [(image.url, image.data if image.data is not None else image.problem) for image in page.images]
