"""That a page is read in the encoding it names when that is one of the web, and in no other codec of Python."""

import codecs
import encodings.aliases

import pytest

from semantica.episodes.sources import html as charset
from semantica.episodes.sources.html import codec_of, page_text, parse, picture_candidates

# What Python takes for an encoding and the web does not.
FOREIGN = sorted(
    {*encodings.aliases.aliases, *encodings.aliases.aliases.values(), "idna", "punycode", "raw_unicode_escape", "undefined"}
    | {"unicode_escape", "utf_8_sig", "utf-7", "mbcs", "charmap", "", "nonsense", "a\0b", "x" * 5000, "é"}
)
QUADRATIC = b"<p>aaa-" + b"zz9a" * 25_000 + b"<img src='/a.png'>"  # 100 KB of which punycode would shift every letter


def test_every_label_is_one_of_the_standard_and_has_a_codec_of_text():
    for label, codec in charset._CODECS.items():
        assert label == label.strip().lower()
        assert codecs.lookup(codec)._is_text_encoding
        assert codec_of(f" {label.upper()}\n") == codec
    assert sum(len(labels.split()) for labels in charset._LABELS.values()) == len(charset._CODECS)  # none twice


@pytest.mark.parametrize(
    ("label", "text", "encoding"),
    [
        ("ISO-8859-1", "“é”", "cp1252"),
        ("us-ascii", "é", "cp1252"),
        ("iso-8859-9", "ğ €", "cp1254"),
        ("tis-620", "กข…", "cp874"),
        ("gb2312", "镕", "gb18030"),
        ("shift_jis", "①絵", "cp932"),
        ("ks_c_5601-1987", "똠", "cp949"),
        ("big5", "中㗎", "big5hkscs"),
        ("utf-16", "é", "utf-16-le"),
        ("koi8-r", "Ж", "koi8-r"),
    ],
)
def test_a_label_is_the_encoding_that_the_standard_gives_it(label, text, encoding):
    assert page_text(text.encode(encoding), label) == text


@pytest.mark.parametrize("label", [label for label in FOREIGN if not codec_of(label)])
def test_a_codec_that_is_no_encoding_of_the_web_is_ignored_wherever_it_is_named(label):
    body = '<img src="/é\\u0041+AGE-.png">'
    as_utf8 = f"<title></title>{body}"
    assert page_text(as_utf8.encode(), label) == as_utf8
    if label.isascii() and label.replace("_", "").isalnum():
        for named in (f"<meta charset={label}>{body}", f'<?xml version="1.0" encoding="{label}"?>{body}'):
            assert page_text(named.encode()) == named


def test_codecs_that_were_harmful_are_among_the_ignored():
    ignored = {label for label in FOREIGN if not codec_of(label)}
    assert ignored >= {"punycode", "idna", "unicode_escape", "raw_unicode_escape", "zlib", "hex", "base64", "rot13", "utf-7", "bz2"}
    assert not any(map(codec_of, ("iso-2022-kr", "hz-gb-2312", "x-user-defined")))  # the standard's "replacement", and bytes


@pytest.mark.parametrize("where", ["http", "meta", "http-equiv", "xml"])
def test_a_page_in_punycode_shows_what_it_shows_in_utf8(where):
    def shown(name):
        head = {
            "http": "",
            "meta": f"<meta charset={name}>",
            "http-equiv": f'<meta http-equiv="Content-Type" content="text/html; charset={name}">',
            "xml": f'<?xml version="1.0" encoding="{name}"?>',
        }[where]
        tree = parse(head.encode() + QUADRATIC, name if where == "http" else "")
        return [candidate.url for found in picture_candidates(tree) for candidate in found], tree.body.text()

    assert len(QUADRATIC) > 100_000
    assert shown("punycode") == shown("utf-8") == (["/a.png"], QUADRATIC[3:].partition(b"<")[0].decode())


@pytest.mark.parametrize(
    ("data", "declared", "expected"),
    [
        (b"\xef\xbb\xbf\xc3\xa9", "windows-1251", "é"),
        ("\ufeffé".encode("utf-16-be"), "utf-8", "é"),
        (b"<meta charset=utf-8>\xe9", "windows-1252", "<meta charset=utf-8>é"),
        (b"<meta charset=nonsense><meta charset=koi8-r>\xd6", "", "<meta charset=nonsense><meta charset=koi8-r>ж"),
        (b"<!-- <meta charset=koi8-r> -->\xe9", "", "<!-- <meta charset=koi8-r> -->é"),
        (b"<meta charset=utf-16le>\xc3\xa9", "", "<meta charset=utf-16le>é"),
        (b"<meta charset=utf-8>\xe9", "", "<meta charset=utf-8>\ufffd"),
        (b" " * 1024 + b"<meta charset=koi8-r>\xc3\xa9", "", " " * 1024 + "<meta charset=koi8-r>é"),
    ],
    ids=[
        "BOM",
        "UTF-16 BOM",
        "HTTP before meta",
        "the first that is known",
        "in a comment",
        "UTF-16 in ASCII",
        "bad bytes",
        "late",
    ],
)
def test_what_names_the_encoding_counts_in_the_order_of_the_standard(data, declared, expected):
    assert page_text(data, declared) == expected
