"""The stream of episodes through the encoder: full batches across episodes and tables, rows in order, memory of a few tables."""

import io
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from semantica.data.schemas import QUARANTINE, encodings_schema
from semantica.encoders.encode import decode_picture, encode_episodes, encode_pictures, encode_stream
from semantica.encoders.encoder import load_encoder
from semantica.encoders.settings import EncodeConfig, EncoderConfig
from semantica.errors import ConfigError, DataError
from semantica.pairs.scores import pooled_rows


@pytest.fixture(scope="module")
def encoder(checkpoints):
    return load_encoder(EncoderConfig(weights=str(checkpoints["dinov2"]), image_px=28))


@pytest.fixture
def counted(encoder, monkeypatch):
    """The same encoder; counted.shapes are the batches that it was given."""
    shapes, run = [], encoder._run
    monkeypatch.setattr(encoder, "_run", lambda model, x: shapes.append(tuple(x.shape)) or run(model, x))
    encoder.shapes = shapes
    yield encoder
    del encoder.shapes


def flat_tokens(table):
    return np.concatenate([np.frombuffer(image, "<f2") for row in table["tokens"].to_pylist() for image in row]).reshape(-1, 5, 16)


def stored(table):
    return [image["bytes"] for row in table["images"].to_pylist() for image in row]


def test_episodes_are_encoded_row_for_row_whatever_the_batch_size(make, encoder):
    table = make.episodes((3, 1, 0, 4, 2))
    alone = torch.cat([encoder(decode_picture(data)[None]).tokens for data in stored(table)]).numpy()
    for size in (1, 3, 4, 64):
        result = encode_episodes(table, encoder, EncodeConfig(batch_size=size))
        assert result.table.schema == encodings_schema(16, 5, 16)
        assert result.table.select(table.column_names).equals(table)
        assert (result.num_images, result.num_episodes_lost) == (10, 0)
        assert result.quarantine.equals(QUARANTINE.empty_table())
        rows = pooled_rows(result.table["pooled"])
        assert [len(r) for r in rows] == [3, 1, 0, 4, 2]
        tokens = flat_tokens(result.table)
        assert tokens.dtype == np.float16
        # Another batch size may round a sum in another order (1e-5 here), which may turn one float16 into its neighbour.
        np.testing.assert_allclose(tokens.astype(np.float32), alone, rtol=2**-10, atol=2e-5)
        np.testing.assert_allclose(np.concatenate(rows), alone[:, 0], rtol=2**-10, atol=2e-5)


def test_batches_are_filled_across_episodes_and_tables_and_all_have_one_shape(make, counted):
    tables = [make.episodes(sizes, first=100 * i) for i, sizes in enumerate([(3, 1), (2,), (), (5, 5, 1), (1,)])]
    results = list(encode_stream(iter(tables), counted, EncodeConfig(batch_size=4)))
    assert counted.shapes == [(4, 3, 28, 28)] * 5  # 18 pictures: four full batches and one that is filled up
    assert [r.table["episode_id"].to_pylist() for r in results] == [t["episode_id"].to_pylist() for t in tables]


def test_a_table_is_encoded_to_the_same_bits_whatever_comes_before_it(make, encoder):
    table, settings = make.episodes((3, 2, 4)), EncodeConfig(batch_size=4)
    expected = encode_episodes(table, encoder, settings)
    for before in ((1,), (2, 1), (5, 5)):
        *_, after = encode_stream([make.episodes(before, first=50), table], encoder, settings)
        assert after.table.equals(expected.table)


def test_no_more_tables_are_read_than_the_batches_ahead_need(make, encoder):
    """Memory is bounded: when the first table comes out, only the pictures of a few batches have been asked for."""
    read = []

    def tables():
        for index in range(100):
            read.append(index)
            yield make.episodes((4,), first=4 * index)

    stream = encode_stream(tables(), encoder, EncodeConfig(batch_size=4))
    for expected in range(20):
        assert next(stream).num_images == 4
        # One being encoded, one waiting for its last row, two ahead, one in the making.
        assert len(read) <= expected + 6
    stream.close()
    assert len(read) < 30
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_an_error_while_reading_reaches_the_caller(make, encoder):
    def tables():
        yield make.episodes((4,))
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        list(encode_stream(tables(), encoder, EncodeConfig(batch_size=2)))


def test_the_pooled_sum_is_that_of_the_stored_values(make, encoder):
    result = encode_episodes(make.episodes((3, 2)), encoder, EncodeConfig())
    values = np.concatenate(pooled_rows(result.table["pooled"])).astype(np.float64)
    np.testing.assert_array_equal(result.pooled_sum, values.sum(0))


def test_without_tokens_the_pooled_embeddings_are_the_same(make, encoder):
    table = make.episodes((3, 2))
    lean, full = (encode_episodes(table, encoder, EncodeConfig(store_tokens=flag)).table for flag in (False, True))
    assert lean.schema == encodings_schema(16, None, None)
    assert lean["pooled"] == full["pooled"]


def test_no_picture_gives_no_row(make, encoder):
    encoded = encode_pictures([], encoder, 4)
    assert (encoded.tokens.shape, encoded.pooled.shape) == ((0, 5, 16), (0, 16))
    assert encode_episodes(make.episodes(()), encoder, EncodeConfig()).table.num_rows == 0
    assert list(encode_stream([], encoder, EncodeConfig())) == []


def test_pictures_of_several_sizes_share_a_batch(make, counted):
    sizes = (16, 28, 40)
    pictures = [make.picture(5, side) for side in sizes] + [make.picture(6, 16)]
    together = encode_pictures(pictures, counted, 4)
    assert counted.shapes == [(4, 3, 28, 28)]
    for row, data in enumerate(pictures):
        torch.testing.assert_close(together.tokens[row], encode_pictures([data], counted, 4).tokens[0], atol=1e-5, rtol=1e-5)


def replaced(table, bad):
    """The table with other bytes for some pictures: {(row, image): bytes}."""
    rows = table.to_pylist()
    for (row, image), data in bad.items():
        rows[row]["images"][image]["bytes"] = data
    return pa.Table.from_pylist(rows, schema=table.schema)


def wide():
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "PNG")
    return stream.getvalue()


def test_a_picture_that_does_not_decode_is_a_quarantined_row_and_the_rest_is_as_if_it_had_never_been(make, encoder):
    table = make.episodes((3, 1, 2, 0, 2))
    truncated = stored(table)[0][:200]
    bad = {(0, 1): truncated, (1, 0): b"", (2, 0): b"GIF89a", (2, 1): wide()}
    result = encode_episodes(replaced(table, bad), encoder, EncodeConfig(batch_size=4))
    assert result.num_images + result.quarantine.num_rows == 8
    assert result.quarantine["url"].to_pylist() == [f"http://x/{n}" for n in (1, 3, 4, 5)]
    assert result.quarantine["page_url"].to_pylist() == [f"http://x/page0000-0{n}" for n in (0, 1, 2, 2)]
    assert set(result.quarantine["reason"].to_pylist()) == {"undecodable"}
    assert "must be square, got 30x20" in result.quarantine["detail"].to_pylist()[3]
    # Pages 1 and 2 have nothing left and go; page 3 came empty and stays.
    assert result.num_episodes_lost == 2
    kept = [row for index, row in enumerate(table.to_pylist()) if index in (0, 3, 4)]
    del kept[0]["images"][1]
    clean = pa.Table.from_pylist(kept, schema=table.schema)
    expected = encode_episodes(clean, encoder, EncodeConfig(batch_size=4))
    assert result.table.equals(expected.table)
    np.testing.assert_array_equal(result.pooled_sum, expected.pooled_sum)


def test_bytes_that_are_no_picture_are_refused():
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_picture(b"GIF89a and nothing more")


@pytest.mark.parametrize("field", ["batch_size", "rows_per_group"])
def test_settings_out_of_range_are_refused_by_name(field):
    with pytest.raises(ConfigError, match=rf"{field} must be positive"):
        EncodeConfig(**{field: 0})
