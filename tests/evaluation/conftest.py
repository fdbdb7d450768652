"""A small evaluation set: hand-made encodings whose pictures are held out, with labels. Modules are imported late, as elsewhere."""

import numpy as np
import pytest

DIM = 4


@pytest.fixture
def a_set(tmp_path):
    """a_set(sizes by label, ...): an EvaluationSet of noise pictures of 24 px, and where it lies; train: training pictures."""

    def made(sizes, *, name="set", labels=None, seed=0, train=0, facts=None):
        return make_set(tmp_path / name, sizes, labels=labels, seed=seed, name=name, train=train, facts=facts)

    return made


def make_set(folder, sizes, *, name="set", labels=None, seed=0, train=0, facts=None):
    import pyarrow as pa

    from semantica.data.dataset import StageOutput
    from semantica.data.schemas import encodings_schema
    from semantica.evaluation.sets import open_set
    from semantica.generation.generate import png_bytes

    generator = np.random.default_rng(seed)
    stage = StageOutput(folder, "encodings", {"store_tokens": False, "seed": seed}, {"episodes": "1" * 64})
    assert stage.open() is None
    rows, train_rows, count = [], [], 0
    for label, size in [*sizes.items(), *([("train", train)] if train else [])]:
        images = []
        for _ in range(size):
            pixels = generator.integers(0, 256, (24, 24, 3), np.uint8)
            images.append({"image_id": f"{count:032x}", "url": f"{count}", "bytes": png_bytes(pixels), "width": 24, "height": 24})
            count += 1
        (train_rows if label == "train" else rows).append(
            {
                "episode_id": f"episode of {label}",
                "page_url": label,
                "source": "test",
                "images": images,
                "pooled": [[0.0] * DIM] * size,
            }
        )
    schema = encodings_schema(DIM, None, None)
    trained, held_out = (pa.Table.from_pylist(some, schema=schema) for some in (train_rows, rows))
    stage.write_shard("part-00000", {"": trained, "held_out": held_out}, {}, 1)
    stage.finish({"num_held_out_images": count - train}, {"encoder": {}, "pictures": [], **(facts or {})})
    return open_set(name, folder, all_labels=labels or ())
