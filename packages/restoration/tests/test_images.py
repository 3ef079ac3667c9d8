"""Picture files in and out: values, depth, transparency and metadata survive; the strip writers agree with Pillow."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, features

from vsuite.core import InputError
from vsuite.restoration import writers
from vsuite.restoration.images import Metadata, read_picture
from vsuite.restoration.tags import exif_block, orientation_of, read_tags, short
from vsuite.restoration.writers import strips_of, write_picture


def smooth(height: int, width: int, channels: int, dtype: type = np.uint8) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [(np.sin(x / (5 + c)) + np.cos(y / (7 + c)) + 2) / 4 for c in range(channels)]
    return (np.stack(waves, 2) * np.iinfo(dtype).max).astype(dtype)


def write(path: Path, pixels: np.ndarray, metadata: Metadata | None = None, rows: int = 50, **options: int) -> Path:
    write_picture(path, strips_of(pixels, rows), pixels.shape[:2], pixels.shape[2], pixels.dtype, metadata, **options)
    return path


@settings(max_examples=25)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 40),
    channels=st.integers(1, 4),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    suffix=st.sampled_from([".png", ".tif"]),
    rows=st.integers(1, 200),
    seed=st.integers(0, 9),
)
def test_lossless_formats_return_every_value(tmp_path_factory, height, width, channels, dtype, suffix, rows, seed) -> None:
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype, endpoint=True)
    path = write(tmp_path_factory.mktemp("io") / f"a{suffix}", pixels, rows=rows)
    found = read_picture(path).pixels
    if channels == 2 and dtype == np.uint16 and suffix == ".tif":  # written as RGBA
        found = found[..., [0, 3]]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("height", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_of_joined_strips_is_pillows_jpeg(tmp_path: Path, height: int, channels: int) -> None:
    pixels = smooth(height, 37, channels)
    path = write(tmp_path / "a.jpg", pixels, rows=23)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(buffer)))
    assert Image.open(path).size == (37, height)


def test_webp_and_bmp(tmp_path: Path) -> None:
    pixels = smooth(70, 50, 3)
    np.testing.assert_array_equal(read_picture(write(tmp_path / "a.bmp", pixels)).pixels, pixels)
    assert np.abs(read_picture(write(tmp_path / "a.webp", pixels)).pixels.astype(int) - pixels).mean() < 3
    alpha = smooth(70, 50, 4)
    np.testing.assert_array_equal(read_picture(write(tmp_path / "b.webp", alpha)).pixels[..., 3], alpha[..., 3])


def test_large_pictures_of_formats_that_must_be_whole_wait_on_disk(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(writers, "IN_MEMORY", 1)
    pixels = smooth(100, 30, 3)
    np.testing.assert_array_equal(read_picture(write(tmp_path / "a.bmp", pixels)).pixels, pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bmp"]


def test_bigtiff_where_4_gb_do_not_suffice(tmp_path: Path, monkeypatch) -> None:
    class Small(writers.TiffWriter):
        def __init__(self, file, size, channels, dtype, metadata) -> None:
            super().__init__(file, size, channels, dtype, metadata)
            self.big = True
            file.seek(0)
            file.write(b"II+\0\x08\0\0\0" + bytes(8))

    monkeypatch.setattr(writers, "TiffWriter", Small)
    pixels = smooth(150, 30, 3)
    tags = read_tags(sample_exif())
    path = write(tmp_path / "a.tif", pixels, Metadata(tags=tags, icc=srgb()))
    assert path.read_bytes()[:4] == b"II+\0"
    found = read_picture(path)
    np.testing.assert_array_equal(found.pixels, pixels)
    assert found.metadata.icc == srgb()
    assert found.metadata.tags[34665][33434] == tags[34665][33434]


@functools.cache  # it notes the time
def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def sample_exif(orientation: int = 1) -> bytes:
    """As a camera writes it, in big-endian order."""
    exif = Image.Exif()
    exif.endian = ">"
    exif[271], exif[274], exif[306] = "Maker", orientation, "2024:05:06 07:08:09"
    inner = exif.get_ifd(34665)
    inner[33434], inner[40962], inner[40963], inner[36867] = TiffImagePlugin.IFDRational(1, 250), 40, 24, "2024:05:06 07:08:09"
    exif.get_ifd(34853)[1] = "N"
    return exif.tobytes()


XMP = b'<x:xmpmeta><d tiff:Orientation="6" exif:PixelXDimension="40" exif:PixelYDimension="24" dc:title="t"/></x:xmpmeta>'


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_metadata_go_from_every_format_to_every_other(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "source.jpg"
    Image.fromarray(smooth(24, 40, 3)).save(source, exif=sample_exif(6), icc_profile=srgb(), xmp=XMP, dpi=(150, 150))
    picture = read_picture(source)
    assert picture.pixels.shape == (40, 24, 3)  # upright
    path = write(tmp_path / f"first{suffix}", np.ascontiguousarray(picture.pixels), picture.metadata.resized(96, 160))
    for name in ("second.png", "second.tif", "second.jpg", "second.webp"):
        again = read_picture(path)
        found = read_picture(write(tmp_path / name, again.pixels, again.metadata)).metadata
        assert found.icc == srgb()
        assert b'tiff:Orientation="1"' in found.xmp
        assert b'exif:PixelXDimension="96"' in found.xmp
        assert b'exif:PixelYDimension="160"' in found.xmp
        assert orientation_of(found.tags) == 1
        exif = Image.Exif()
        exif.load(exif_block(found.tags))
        assert (exif[271], exif[306]) == ("Maker", "2024:05:06 07:08:09")
        inner = exif.get_ifd(34665)
        assert (inner[33434], inner[40962], inner[40963]) == (1 / 250, 96, 160)
        assert exif.get_ifd(34853)[1] == "N"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str, channels: int, dtype: type) -> None:
    """Some of the libraries that decode TIFF turn it themselves."""
    pixels = smooth(20, 30, channels, dtype)
    path = write(tmp_path / f"a{suffix}", pixels, Metadata(tags=read_tags(sample_exif(orientation))))
    turned = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    turned = turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, turned)
    assert orientation_of(picture.metadata.resized(1, 1).tags) == 1


def test_tags_that_describe_one_files_pixels_do_not_go_into_a_tiff(tmp_path: Path) -> None:
    """As EXIF of a JPEG that was made of a raw picture holds them."""
    tags = {284: short(2), 322: short(16), 339: short(3), 266: short(2), 37724: short(1), 271: (2, 6, b"Maker\0")}
    path = write(tmp_path / "a.tif", smooth(9, 9, 3), Metadata(tags=tags))
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, smooth(9, 9, 3))
    assert set(picture.metadata.tags) == {271}


def test_a_profile_of_grey_does_not_go_with_colours(tmp_path: Path) -> None:
    grey = srgb()[:16] + b"GRAY" + srgb()[20:]
    for name, channels, dtype, kept in (("a.webp", 1, np.uint8, b""), ("a.tif", 2, np.uint16, b""), ("a.png", 1, np.uint8, grey)):
        path = write(tmp_path / name, smooth(9, 9, channels, dtype), Metadata(icc=grey))
        assert read_picture(path).metadata.icc == kept, name


def test_texts_and_resolution_of_png(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "a picture")
    Image.fromarray(smooth(9, 9, 3)).save(tmp_path / "a.png", pnginfo=texts, dpi=(300, 300))
    picture = read_picture(tmp_path / "a.png")
    again = Image.open(write(tmp_path / "b.png", picture.pixels, picture.metadata))
    again.load()
    assert again.text == {"Title": "a picture"}
    assert again.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_palettes_and_cmyk_become_rgb(tmp_path: Path) -> None:
    flat = Image.new("RGB", (8, 6), (200, 30, 60))
    flat.quantize(4).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "palette.png").pixels, np.asarray(flat))
    see_through = Image.new("P", (8, 6))
    see_through.putpalette([9, 8, 7, 1, 2, 3])
    see_through.save(tmp_path / "transparent.gif", transparency=0)
    np.testing.assert_array_equal(read_picture(tmp_path / "transparent.gif").pixels[..., 3], 0)
    flat.convert("CMYK").save(tmp_path / "cmyk.tif")
    picture = read_picture(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(picture.pixels, np.asarray(flat))
    assert picture.note == "CMYK became RGB"
    Image.new("1", (8, 6), 1).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "bits.png").pixels, np.full((6, 8, 1), 255))


def test_a_dark_picture_of_16_bits_is_one_of_16_bits(tmp_path: Path) -> None:
    dark = np.full((5, 4, 3), 200, np.uint16)
    assert read_picture(write(tmp_path / "a.png", dark)).pixels.dtype == np.uint16


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("a.jpg", (4, 4, 4), np.uint8, "JPEG holds no transparency"),
        ("a.bmp", (4, 4, 3), np.uint16, "BMP holds 8 bits"),
        ("a.xyz", (4, 4, 3), np.uint8, "pictures are written as"),
        ("a.webp", (1, 20000, 3), np.uint8, "20000 x 1 is more than WEBP can hold"),
        ("a.png", (1, 3_000_000_000, 3), np.uint8, "3000000000 x 1 is more than PNG can hold"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: type, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_picture(tmp_path / name, [], shape[:2], shape[2], dtype)
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def strips():
        yield smooth(70, 20, 3)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_picture(tmp_path / "a.png", strips(), (200, 20), 3, np.uint8)
    assert not list(tmp_path.iterdir())


@given(st.binary(max_size=300))
def test_damaged_exif_is_passed_over(data: bytes) -> None:
    read_tags(b"Exif\0\0II*\0" + data)
    tags = read_tags(b"MM\0*\0\0\0\x08" + data)
    read_tags(exif_block(tags))


def test_a_tiff_that_names_no_resolution_gets_none(tmp_path: Path) -> None:
    Image.fromarray(smooth(9, 9, 3)).save(tmp_path / "a.tif")
    metadata = read_picture(tmp_path / "a.tif").metadata
    assert metadata.dpi is None
    assert 282 not in Image.open(write(tmp_path / "b.tif", smooth(9, 9, 3), metadata)).tag_v2


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ('{"shape": [8, 10, 3]}', None),
        ('{"who": "me", "shape": [8, 10, 3]}', '{"who": "me"}'),
        ('<?xml version="1.0"?><OME xmlns="ome"><Pixels SizeX="10" SizeY="8"/></OME>', None),
        ("A cat on a mat", "A cat on a mat"),
        ('{"shape": [8', '{"shape": [8'),
        ('{"title": "cat"}', '{"title": "cat"}'),
    ],
)
def test_a_description_of_the_old_shape_is_not_kept(tmp_path: Path, said: str, kept: str | None) -> None:
    Image.new("RGB", (10, 8)).save(tmp_path / "a.tif", tiffinfo={270: said})
    metadata = read_picture(tmp_path / "a.tif").metadata
    write(tmp_path / "b.tif", smooth(16, 20, 3), metadata.resized(20, 16))
    with Image.open(tmp_path / "b.tif") as found:
        assert found.tag_v2.get(270) == kept


def test_tifffile_reads_what_came_from_it(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", smooth(8, 10, 3), metadata={"who": "me"}, photometric="rgb")
    write(tmp_path / "b.tif", smooth(16, 20, 3), read_picture(tmp_path / "a.tif").metadata.resized(20, 16))
    with tifffile.TiffFile(tmp_path / "b.tif") as found:
        assert found.pages[0].shape == (16, 20, 3)
        assert json.loads(found.pages[0].description) == {"who": "me"}


def test_jpeg_2000_keeps_16_bits(tmp_path: Path) -> None:
    import cv2

    pixels = smooth(60, 80, 3, np.uint16)
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    if not cv2.imwrite(str(tmp_path / "a.jp2"), pixels[..., ::-1], lossless):
        pytest.skip("this OpenCV writes no JPEG 2000")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jp2").pixels, pixels)
    cv2.imwrite(str(tmp_path / "b.jp2"), pixels[..., 0], lossless)
    np.testing.assert_array_equal(read_picture(tmp_path / "b.jp2").pixels, pixels[..., :1])


def test_avif_is_turned_and_says_what_its_depth_lost(tmp_path: Path) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    import cv2

    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(smooth(60, 80, 3)).save(tmp_path / "a.avif", exif=exif, quality=95)
    found = read_picture(tmp_path / "a.avif")
    assert (found.pixels.shape, found.note) == ((80, 60, 3), "")
    assert np.abs(found.pixels.astype(int) - np.rot90(smooth(60, 80, 3), -1)).mean() < 4
    options = [cv2.IMWRITE_AVIF_DEPTH, 10]
    if not cv2.imwrite(str(tmp_path / "deep.avif"), np.full((60, 80, 3), 512, np.uint16), options):
        pytest.skip("this OpenCV writes no AVIF")
    deep = read_picture(tmp_path / "deep.avif")
    assert deep.note == "its 10 bits became 8"
    np.testing.assert_allclose(deep.pixels, 128, atol=2)


@pytest.mark.parametrize("suffix", [".avif", ".jp2"])
def test_cut_pictures_of_the_formats_only_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    Image.effect_noise((60, 80), 60).convert("RGB").save(tmp_path / f"a{suffix}")
    data = (tmp_path / f"a{suffix}").read_bytes()
    for length in (10, 100, 300, len(data) // 2):
        (tmp_path / f"cut{suffix}").write_bytes(data[:length])
        with pytest.raises(InputError, match=rf"cut\{suffix}: (is no picture|cannot be read)"):
            read_picture(tmp_path / f"cut{suffix}")
