"""The labels of ImageNet's validation pictures, from the development kit as published (ILSVRC2012_devkit_t12.tar.gz).

Comes in: a tree with the kit in its root. Goes out: the WordNet ID of every validation picture, in the order of their names. The
kit is read as untrusted bytes: MATLAB's format holds numbers and text, never code, and what is unpacked is bounded.
"""

from __future__ import annotations

import io
import tarfile
import zlib

import numpy as np
from scipy.io import loadmat

from semantica.data.location import location
from semantica.episodes.sources.tree import Tree
from semantica.errors import DataError

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "data/meta.mat"  # ID -> WordNet ID
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"  # one ID a line, in the order of the pictures
MAX_MEMBER_BYTES = 1 << 20  # of the two; MATLAB's own compression (at most 1000 to 1) is inside this
MAX_UNPACKED_BYTES = 64 << 20  # of the whole kit


def validation_labels(tree: Tree) -> list[str]:
    """The WordNet ID of each validation picture, by the position of its name. Raises DataError unless the kit says it."""
    file = tree.image_ref(DEVKIT)
    where = tree.root / DEVKIT
    if file.problem:
        raise DataError(f"ingest: {where}: expected the development kit, which labels the validation pictures, got {file.detail}")
    meta, truth = _members(file.path, str(where))
    ids = _wordnet_ids(meta, str(where))
    try:
        return [ids[int(line)] for line in truth.split()]
    except (KeyError, ValueError) as error:
        raise DataError(f"ingest: {where}: {TRUTH}: expected one ID of {META} a line, got {error}") from None


def _members(path: str, where: str) -> tuple[bytes, bytes]:
    """The bytes of META and of TRUTH."""
    found: dict[str, bytes] = {}
    try:
        with location(path).open("rb") as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for member in archive:
                name = next((name for name in (META, TRUTH) if f"/{member.name}".endswith(f"/{name}")), None)
                if member.offset_data + member.size > MAX_UNPACKED_BYTES or (name and member.size > MAX_MEMBER_BYTES):
                    raise DataError(
                        f"ingest: {where}: expected {MAX_MEMBER_BYTES} bytes at most, got {member.size} in {member.name}"
                    )
                content = archive.extractfile(member) if name else None
                if name and content:
                    found[name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise DataError(f"ingest: {where}: expected the kit as published, got a file that is damaged ({error})") from None
    missing = [name for name in (META, TRUTH) if name not in found]
    if missing:
        raise DataError(f"ingest: {where}: expected {META} and {TRUTH} in it, found no {' and no '.join(missing)}")
    return found[META], found[TRUTH]


def _wordnet_ids(meta: bytes, where: str) -> dict[int, str]:
    """ID -> WordNet ID of the synsets without children, which are the classes."""
    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"])
        rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True)
        return {int(number): str(wordnet_id) for number, wordnet_id, num_children in rows if num_children == 0}
    except Exception as error:  # noqa: BLE001 - the reader raises anything over damaged bytes; the message keeps the text
        raise DataError(f"ingest: {where}: {META}: expected the table `synsets`, got {type(error).__name__}: {error}") from None
