"""A small evaluation set: hand-made encodings whose pictures are held out, with labels. Modules are imported late, as elsewhere."""

import numpy as np
import pytest

DIM = 4


@pytest.fixture
def a_set(tmp_path):
    """a_set(sizes by label, ...): an EvaluationSet of noise pictures of 24 px, and where it lies."""

    def made(sizes, *, name="set", labels=None, seed=0):
        return make_set(tmp_path / name, sizes, labels=labels, seed=seed, name=name)

    return made


def make_set(folder, sizes, *, name="set", labels=None, seed=0):
    import pyarrow as pa

    from semantica.data.dataset import StageOutput
    from semantica.data.schemas import encodings_schema
    from semantica.evaluation.sets import open_set
    from semantica.generation.generate import png_bytes

    generator = np.random.default_rng(seed)
    stage = StageOutput(folder, "encodings", {"store_tokens": False, "seed": seed}, {"episodes": "1" * 64})
    assert stage.open() is None
    rows, count = [], 0
    for label, size in sizes.items():
        images = []
        for _ in range(size):
            pixels = generator.integers(0, 256, (24, 24, 3), np.uint8)
            images.append({"image_id": f"{count:032x}", "url": f"{count}", "bytes": png_bytes(pixels), "width": 24, "height": 24})
            count += 1
        rows.append(
            {
                "episode_id": f"episode of {label}",
                "page_url": label,
                "source": "test",
                "images": images,
                "pooled": [[0.0] * DIM] * size,
            }
        )
    schema = encodings_schema(DIM, None, None)
    empty, table = schema.empty_table(), pa.Table.from_pylist(rows, schema=schema)
    stage.write_shard("part-00000", {"": empty, "held_out": table}, {}, 1)
    stage.finish({"num_held_out_images": count}, {"encoder": {}, "pictures": []})
    return open_set(name, folder, all_labels=labels or ())
