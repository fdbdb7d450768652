"""Trees of files for tests, and what the pages made of them show."""

from semantica.episodes.pages import ReadConfig
from semantica.episodes.sources.html import read_page
from semantica.episodes.sources.tree import open_tree

DEFAULT = ReadConfig()


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def page(root, html, name="index.html"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(html if isinstance(html, bytes) else html.encode())
    return read_page(open_tree(root), name)


def pages_of(source, root, settings=DEFAULT):
    """All pages, part after part."""
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]


def urls(page):
    return [image.url for image in page.images]


def problems(page):
    return [image.problem for image in page.images]
