from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vsuite.core.errors import InputError
from vsuite.restoration.data.patches import BicubicPatches, DegradedPatches, PictureStore, to_picture, to_tensor, turn_alike
from vsuite.restoration.data.pictures import list_pictures, read_rgb
from vsuite.restoration.resize import crop_to_multiple, imresize
from vsuite.restoration.writers import write_picture


@pytest.fixture
def store(pictures, tmp_path):
    store = PictureStore(tmp_path / "prepared", list_pictures(pictures), 2, 16)
    store.prepare()
    return store


def test_kept_pairs_are_the_pictures_and_their_bicubic(store):
    for index, path in enumerate(store.pictures):
        low, high = store.pair(index)
        assert np.array_equal(high, crop_to_multiple(read_rgb(path), 2))
        assert np.array_equal(low, imresize(np.asarray(high), 0.5))


def test_reading_anew_gives_the_same_samples(store):
    unkept = PictureStore(None, store.pictures, 2, 16)
    unkept.prepare()
    kept = BicubicPatches(store, 8)
    rng = [np.random.default_rng(5) for _ in range(2)]
    a = kept.sample(int(np.flatnonzero(kept.owners == 3)[0]), rng[0])
    b = BicubicPatches(unkept, 8).sample(3, rng[1])
    assert torch.equal(a["low"], b["low"])
    assert torch.equal(a["high"], b["high"])


def test_low_and_high_show_the_same_place(store):
    patches = BicubicPatches(store, 8)
    assert len(patches) == 6 * (48 * 40 // 16**2)
    for seed in range(20):
        pair = patches.sample(seed % len(patches), np.random.default_rng(seed))
        assert (pair["low"].shape, pair["high"].shape) == ((3, 8, 8), (3, 16, 16))
        again = torch.from_numpy(imresize(pair["high"].permute(1, 2, 0).numpy(), 0.5)).permute(2, 0, 1)
        assert (again.clamp(0, 1) - pair["low"])[:, 2:-2, 2:-2].abs().max() < 0.01  # but for the edges and rounding


def test_samples_depend_on_the_generator_alone(store):
    patches = BicubicPatches(store, 8)
    first, second, other = (patches.sample(1, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first["high"], second["high"])
    assert not torch.equal(first["high"], other["high"])


def test_all_eight_turns_occur():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    seen = set()
    for seed in range(100):
        a, b = turn_alike([image, image], np.random.default_rng(seed))
        assert np.array_equal(a, b)
        seen.add(a.tobytes())
    assert len(seen) == 8


def test_small_pictures_are_refused_or_enlarged(tmp_path):
    path = tmp_path / "small.png"
    Image.fromarray(np.zeros((10, 40, 3), np.uint8)).save(path)
    with pytest.raises(InputError, match=r"small\.png: 40 x 10 pixels are too few for patches of 16"):
        PictureStore(tmp_path / "kept", [path], 2, 16).prepare()
    low, high = PictureStore(None, [path], 2, 16, enlarge=True).pair(0)
    assert (low.shape, high.shape) == ((8, 32, 3), (16, 64, 3))


def test_pictures_kept_for_other_settings_are_not_used(store, tmp_path):
    """An earlier run into the same folder may have ended before its settings were kept."""
    other = PictureStore(store.folder, [*store.pictures[3:4], *store.pictures], 4, 16)
    other.prepare()
    low, high = other.pair(0)
    assert np.array_equal(high, crop_to_multiple(read_rgb(store.pictures[3]), 4))
    assert low.shape[0] * 4 == high.shape[0]
    path = tmp_path / "changed.png"
    for value in (1, 2):
        Image.fromarray(np.full((16, 16 + value, 3), value, np.uint8)).save(path)
        changed = PictureStore(store.folder, [path], 2, 16)
        changed.prepare()
        assert changed.high(0).max() == value


def test_degraded_patches_are_aligned_and_mirror_what_is_missing(store):
    def degrade(high, rng):
        assert high.shape == (1, 3, 64, 64)  # more than the pictures have
        return {"low": high[..., ::2, ::2], "high": high, "sharpened": high + 1}

    patches = DegradedPatches(store, 64, 8, degrade)
    for seed in range(10):
        made = patches.sample(seed % len(patches), np.random.default_rng(seed))
        assert made["low"].shape == (3, 8, 8)
        assert torch.equal(made["high"][:, ::2, ::2], made["low"])
        assert torch.equal(made["sharpened"], made["high"] + 1)


def test_unreadable_pictures_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png: is no picture"):
        read_rgb(tmp_path / "text.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut\.jpg: cannot be read"):
        read_rgb(tmp_path / "cut.jpg")
    with pytest.raises(InputError, match="no such folder"):
        list_pictures(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        list_pictures(tmp_path / "empty")


def test_orientation_grey_and_sixteen_bits(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_rgb(tmp_path / "turned.png"), np.rot90(image, -1))
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_rgb(tmp_path / "grey.png"), image[..., :1].repeat(3, axis=2))
    Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_rgb(tmp_path / "deep.png"), image[..., :1].repeat(3, axis=2))
    write_picture(tmp_path / "colours.png", [np.full((2, 2, 3), 255, np.uint16)], (2, 2), 3, np.uint16)
    assert np.array_equal(read_rgb(tmp_path / "colours.png"), np.ones((2, 2, 3)))  # rounded, not cut
    Image.new("RGBA", (3, 2), (9, 8, 7, 0)).save(tmp_path / "clear.png")
    assert np.array_equal(read_rgb(tmp_path / "clear.png"), np.full((2, 3, 3), (9, 8, 7)))


def test_hidden_files_and_folders_named_like_pictures_are_passed_over(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "._a.png").write_bytes(b"what a Mac leaves beside a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert list_pictures(tmp_path) == [tmp_path / "a.png"]


def test_formats_that_are_not_read_are_mentioned(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.jp2")
    (tmp_path / "c.heic").write_bytes(b"heic")
    with pytest.warns(UserWarning, match=r"1 picture is left out, as the format is not read \(1 HEIC\)"):
        assert list_pictures(tmp_path) == [tmp_path / "a.png", tmp_path / "b.jp2"]


def test_tensors_and_back():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(to_picture(to_tensor(image)), image)
    assert to_picture(torch.tensor([-1.0, 2.0, 0.5]).reshape(3, 1, 1)).ravel().tolist() == [0, 255, 128]
