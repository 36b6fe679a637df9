"""Folders of images: declared preprocessing, labels by folder, broken files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attar.calibration import ImagePreprocess, as_data
from attar.errors import InputError
from attar.specs import TensorSpec

F32 = np.dtype(np.float32)
NCHW = (TensorSpec("x", F32, ("N", 3, 8, 6)),)
NHWC = (TensorSpec("x", F32, ("N", 8, 6, 3)),)


@pytest.fixture
def pictures(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for at, (name, mode) in enumerate(
        [("b.png", "RGB"), ("a.bmp", "RGB"), ("c.webp", "RGB"), ("d.jpg", "L"), ("e.png", "P")]
    ):
        pixels = rng.integers(0, 256, (20 + at, 31, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"rubbish")
    return tmp_path


def pixels_of(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    with Image.open(path) as image:
        placed = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR).crop(box)
        return np.asarray(placed, np.float64)


def test_folder_resize_crop_normalize(pictures):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = as_data(pictures, NCHW, preprocess=ImagePreprocess(size=(8, 6), resize=10, mean=mean, std=std))
    assert data.count() == 5
    batch = data.first()
    assert batch.labels is None
    assert batch.inputs["x"].shape == (5, 3, 8, 6)
    for at, name in enumerate(["a.bmp", "b.png", "c.webp", "d.jpg", "e.png"]):
        with Image.open(pictures / name) as image:
            width, height = image.size
        long = int(10 * width / height)
        left = round((long - 6) / 2)
        want = pixels_of(pictures / name, (10, long), (left, 1, left + 6, 9)) / 255
        want = ((want - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(batch.inputs["x"][at], want, rtol=1e-6, atol=1e-6)


def test_size_and_layout_come_from_the_model(pictures):
    first = as_data(pictures, NCHW, preprocess={"scale": 1}).first().inputs["x"]
    last = as_data(pictures, NHWC, preprocess={"scale": 1}).first().inputs["x"]
    assert np.array_equal(first.transpose(0, 2, 3, 1), last)
    # no resize: the smallest size that covers 8 x 6, of 31 x 21 pixels in a.bmp -> 11 x 8, then the middle
    left = round((11 - 6) / 2)
    assert np.array_equal(last[0], pixels_of(pictures / "a.bmp", (8, 11), (left, 0, left + 6, 8)))


def test_stretch_channels_and_grey(pictures):
    rgb, bgr = (
        as_data(pictures, NCHW, preprocess=ImagePreprocess(crop="none", channels=c)).first().inputs["x"]
        for c in ("RGB", "BGR")
    )
    assert np.array_equal(rgb[:, ::-1], bgr)
    want = pixels_of(pictures / "a.bmp", (8, 6), (0, 0, 6, 8)) / 255
    np.testing.assert_allclose(rgb[0].transpose(1, 2, 0), want, rtol=1e-6)
    grey = (TensorSpec("x", F32, (1, 1, 8, 6)),)
    assert as_data(pictures, grey, preprocess=ImagePreprocess(channels="L")).first().inputs["x"].shape == (
        1,
        1,
        8,
        6,
    )
    with pytest.raises(InputError, match="gives 3 channels") as caught:
        as_data(pictures, grey, preprocess=ImagePreprocess())
    assert 'channels="L"' in str(caught.value)


def test_integer_pixels(pictures):
    def read(dtype, **options):
        specs = (TensorSpec("x", np.dtype(dtype), ("N", 3, 8, 6)),)
        return as_data(pictures, specs, preprocess=ImagePreprocess(**options)).first().inputs["x"]

    raw = read(np.uint8, scale=1)
    assert raw.dtype == np.uint8
    assert np.array_equal(read(np.int8, scale=1, mean=128.0), raw.astype(int) - 128)
    with pytest.raises(InputError, match="the options give 0 to 1"):
        read(np.uint8)
    with pytest.raises(InputError, match="the options give 0 to 255"):
        read(np.int8, scale=1)


def test_class_folders(tmp_path):
    for name, count in [("dog", 2), ("cat", 3), ("empty", 0), ("zebra", 1)]:
        (tmp_path / name / "more").mkdir(parents=True)
        for i in range(count):
            where = tmp_path / name / ("more" if i else "") / f"{i}.PNG"
            Image.new("RGB", (6, 8), (i, 0, 0)).save(where)
    data = as_data(tmp_path, NCHW, preprocess=ImagePreprocess())
    assert data.first().labels.tolist() == [0, 0, 0, 1, 1, 3]
    assert "0 cat, 1 dog, 2 empty, 3 zebra" in data.notes[0]
    Image.new("RGB", (6, 8)).save(tmp_path / "loose.png")
    with pytest.raises(InputError, match="beside its class folders"):
        as_data(tmp_path, NCHW, preprocess=ImagePreprocess())


def test_callable_and_images_from_a_data_set(pictures):
    def to_array(image):
        return np.asarray(image.convert("RGB").resize((6, 8)), np.float32).transpose(2, 0, 1)

    a = as_data(pictures, NCHW, preprocess=to_array).first().inputs["x"]
    b = as_data(pictures, NCHW, preprocess=lambda image: to_array(image)[None]).first().inputs["x"]
    assert np.array_equal(a, b)
    images = [(Image.open(pictures / n), i) for i, n in enumerate(["a.bmp", "b.png"])]
    batch = as_data(images, NCHW, preprocess=to_array).first()
    assert np.array_equal(batch.inputs["x"], a[:2])
    assert batch.labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="input 'x' is an image"):
        as_data(images, NCHW).first()
    for image, _ in images:
        image.close()


def test_single_image_file(pictures):
    assert as_data(pictures / "a.bmp", NCHW, preprocess=ImagePreprocess()).first().size == 1


def test_preprocessing_must_be_declared(pictures):
    with pytest.raises(InputError) as caught:
        as_data(pictures, NCHW)
    assert "preprocess=ImagePreprocess(size=224" in str(caught.value)


def test_no_images_and_two_inputs(tmp_path, pictures):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no images"):
        as_data(tmp_path / "none", NCHW, preprocess=ImagePreprocess())
    with pytest.raises(InputError, match="images feed one input; the model has 2"):
        as_data(pictures, (*NCHW, TensorSpec("z", F32, ("N", 3, 8, 6))), preprocess=ImagePreprocess())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"siez": 3}, "did you mean 'size'"),
        ({"size": 0}, "size=0 must be"),
        ({"size": (1, 2, 3)}, "must be a positive"),
        ({"std": 0.0}, "std must not be 0"),
        ({"mean": (1.0, 2.0)}, "mean must be"),
        ({"crop": "centre"}, "crop='centre'"),
        ({"layout": "NHW"}, "layout='NHW'"),
        ({"channels": "RGBA"}, "channels='RGBA'"),
        ({"interpolation": "linear"}, "interpolation='linear'"),
        ({"crop": "none", "resize": 5}, "no use"),
        ({"dtype": "floaty"}, "dtype"),
        ({"mean": "half"}, "mean"),
    ],
)
def test_bad_options(pictures, options, message):
    with pytest.raises(InputError) as caught:
        as_data(pictures, NCHW, preprocess=options)
    assert message in str(caught.value)


def test_crop_larger_than_resize(pictures):
    with pytest.raises(InputError, match="does not fit"):
        as_data(pictures, NCHW, preprocess=ImagePreprocess(resize=5)).first()


def test_layout_that_cannot_be_told(pictures):
    unknown = (TensorSpec("x", F32, ("N", "C", "H", "W")),)
    with pytest.raises(InputError, match="declare layout"):
        as_data(pictures, unknown, preprocess=ImagePreprocess(size=8))
    assert as_data(pictures, unknown, preprocess=ImagePreprocess(size=8, layout="NHWC")).first().inputs[
        "x"
    ].shape == (5, 8, 8, 3)


def test_broken_images_are_named(pictures):
    content = (pictures / "d.jpg").read_bytes()
    for broken in (content[: len(content) // 2], b"", b"not a picture", content[:3]):
        (pictures / "d.jpg").write_bytes(broken)
        with pytest.raises(InputError, match=r"d\.jpg"):
            list(as_data(pictures, NCHW, preprocess=ImagePreprocess()))


def test_decompression_bomb(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (10_000, 100_000):  # PIL warns of the first and refuses the second
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        png = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0" * 99))
            + chunk(b"IEND", b"")
        )
        (tmp_path / "bomb.png").write_bytes(png)
        with pytest.raises(InputError, match=r"bomb\.png is too large"):
            as_data(tmp_path, NCHW, preprocess=ImagePreprocess()).first()


def test_sixteen_bit_image_is_refused(tmp_path):
    Image.fromarray(np.full((8, 6), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png.*not 8 bits"):
        as_data(tmp_path, NCHW, preprocess=ImagePreprocess()).first()
