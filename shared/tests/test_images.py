"""Images and labels from files, augmentation and metrics: values, and what is said when something is wrong."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core import create_model
from vsuite.core.errors import InputError
from vsuite.core.images import files
from vsuite.core.images.augmentation import OPERATIONS, AugmentationSettings, RandAugmentSettings, augment, mix, random_crop
from vsuite.core.images.classifier import freeze_backbone
from vsuite.core.images.datasets import check_for_training, check_images, divide, natural, read_dataset
from vsuite.core.images.files import read_image
from vsuite.core.images.metrics import average_precision, classification_metrics, confusion_matrix, ranks, roc_auc, truth_table
from vsuite.core.images.predictor import find_images
from vsuite.core.images.preprocessing import PreprocessingSettings, preprocess, restore
from vsuite.core.images.recipes import list_recipes, load_recipe

cv2 = pytest.importorskip("cv2")

RED_GREEN = np.zeros((6, 8, 3), np.uint8)
RED_GREEN[:, :4, 0], RED_GREEN[:, 4:, 1] = 255, 255


def save(path: Path, rgb: np.ndarray, *options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = rgb[..., [2, 1, 0, *range(3, rgb.shape[2])]] if rgb.ndim == 3 else rgb
    assert cv2.imwrite(str(path), array, *options)
    return path


def test_missing_images_are_told_beside_those_that_are_there(tmp_path: Path) -> None:
    save(tmp_path / "a.png", RED_GREEN)
    given = [tmp_path / "none.npz", tmp_path / "a.png", tmp_path / "none.png"]
    samples, failed = find_images(given)
    assert [sample.name for sample in samples] == [str(given[1])]
    assert failed == [f"{missing}: no such file or folder, and no file matches it" for missing in given[::2]]
    with pytest.raises(InputError, match=r"none\.npz: no such file or folder"):
        find_images(given[::2])


def folder_of(root: Path, **counts: int) -> Path:
    """A folder a class with so many grey images, of another grey each."""
    for level, (name, count) in enumerate(counts.items()):
        for index in range(count):
            save(root / name / f"{index}.png", np.full((4, 5), 40 * level + index, np.uint8))
    return root


# --- files ---


def test_colours_grey_and_depths_are_read_as_they_are(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", RED_GREEN)), RED_GREEN)
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    found = read_image(save(tmp_path / "b.png", grey))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, grey[..., None])
    np.testing.assert_array_equal(read_image(save(tmp_path / "c.tif", grey)), grey[..., None])
    assert abs(int(read_image(save(tmp_path / "d.jpg", RED_GREEN))[3, 1, 0]) - 255) < 40


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    rgba = np.dstack([RED_GREEN, np.zeros((6, 8), np.uint8)])
    rgba[:, :4, 3] = 255
    found = read_image(save(tmp_path / "a.png", rgba))
    assert found[0, 0].tolist() == [255, 0, 0]
    assert found[0, 7].tolist() == [255, 255, 255]


def test_the_orientation_that_a_camera_notes_is_applied(tmp_path: Path) -> None:
    jpeg = save(tmp_path / "a.jpg", RED_GREEN).read_bytes()
    # one entry in the first directory: orientation (0x0112), a short, 6: turned by 90 degrees
    tiff = b"MM\x00\x2a" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    segment = b"Exif\x00\x00" + tiff
    (tmp_path / "b.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:])
    found = read_image(tmp_path / "b.jpg")
    assert found.shape == (8, 6, 3)
    assert found[0, 3].argmax() == 0  # the red left half is above now
    assert found[7, 3].argmax() == 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    path = save(tmp_path / f"a{suffix}", noise)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"a{suffix}: is truncated"):
        read_image(path)


def test_damage_inside_a_png_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RED_GREEN)
    data = bytearray(path.read_bytes())
    data[50] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png: is damaged: a checksum"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"no image", "cannot be decoded"), (None, "No such file"), (b"\xff\xd8\xff", "is truncated")],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.png: .*{message}"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), 3.0), "from 0 to 1; these are from 3 to 3"),
        (np.zeros((4, 4), np.int64), "got int64"),
        (np.zeros((4, 4, 7), np.uint8), "got 4 x 4 x 7"),
        (np.zeros((0, 4), np.uint8), "got 0 x 4"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(array)


# --- preprocessing ---


def test_preprocessing_scales_cuts_and_normalises() -> None:
    image = np.zeros((10, 20, 1), np.uint8)
    image[:, 5:15] = 255
    settings = PreprocessingSettings(size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert settings.size == (4, 4)
    found = preprocess(image, settings)
    assert found.shape == (3, 4, 4)
    torch.testing.assert_close(found, torch.ones(3, 4, 4))  # the white middle
    stretched = preprocess(image, settings.model_copy(update={"fit": "stretch", "interpolation": "bilinear"}))
    assert stretched[0, 0, 0] < -0.7
    assert stretched[0, 0, 1] > 0.4
    np.testing.assert_array_equal(restore(found, settings), np.full((4, 4, 3), 255, np.uint8))


def test_number_types_give_the_same_input() -> None:
    levels = np.random.default_rng(1).integers(0, 256, (8, 8, 3))
    settings = PreprocessingSettings(size=8)
    bytes_ = preprocess(levels.astype(np.uint8), settings)
    torch.testing.assert_close(preprocess((levels * 257).astype(np.uint16), settings), bytes_)
    torch.testing.assert_close(preprocess((levels / 255).astype(np.float32), settings), bytes_)
    stretched = preprocess((levels // 16).astype(np.uint16), settings.model_copy(update={"intensity": "image"}))
    assert float(stretched.max()) > 2  # 15 of 65535 is white here


def test_antialiasing_equals_an_area_mean_for_halving() -> None:
    image = np.random.default_rng(2).random((8, 8, 3)).astype(np.float32)
    settings = PreprocessingSettings(size=4, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
    plain = torch.nn.functional.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None], (4, 4), mode="bilinear", align_corners=False)
    assert (preprocess(image, settings) - plain[0]).abs().max() > 0.01  # the plain form sees only the four nearest pixels
    assert abs(float(preprocess(image, settings).mean()) - image.mean()) < 0.02


@pytest.mark.parametrize("wrong", [{"size": 0}, {"mean": (0.5,)}, {"std": (0.0, 1.0, 1.0)}, {"crop": 1.5}, {"sise": 3}])
def test_settings_of_the_input_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        PreprocessingSettings(**wrong)


# --- data sets ---


def test_class_folders_are_read_and_divided(tmp_path: Path) -> None:
    dataset = read_dataset(folder_of(tmp_path, c10=5, c9=10))
    assert dataset.classes == ["c9", "c10"]
    parts = divide(dataset, 0.2, seed=3)
    assert [sum(sample.labels == (k,) for sample in parts.splits["val"]) for k in range(2)] == [2, 1]
    names = {sample.name for split in parts.splits.values() for sample in split}
    assert len(names) == 15
    assert [s.name for s in divide(dataset, 0.2, seed=3).splits["val"]] == [s.name for s in parts.splits["val"]]
    assert [s.name for s in divide(dataset, 0.2, seed=4).splits["val"]] != [s.name for s in parts.splits["val"]]


def test_folders_of_splits_are_read(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", cat=3, dog=2)
    folder_of(tmp_path / "valid", cat=1, dog=1)
    dataset = read_dataset(tmp_path)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 5, "val": 2}
    assert divide(dataset, 0.5, 0) is dataset
    folder_of(tmp_path / "valid", dogg=1)
    with pytest.raises(InputError, match=r"dogg: unknown label 'dogg'; did you mean 'dog'"):
        read_dataset(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert read_dataset(folder_of(tmp_path, car=2, train=2)).classes == ["car", "train"]


def test_csv_of_labels(tmp_path: Path) -> None:
    folder_of(tmp_path, x=3)
    (tmp_path / "a.csv").write_text("path,label,split\nx/0.png,cat,train\nx/1.png,dog,train\nx/2.png,cat,val\n")
    dataset = read_dataset(tmp_path / "a.csv")
    assert (dataset.classes, dataset.multi_label) == (["cat", "dog"], False)
    assert [sample.labels for sample in dataset.splits["train"]] == [(0,), (1,)]
    assert dataset.splits["val"][0].image == tmp_path / "x/2.png"
    assert check_images(dataset.splits["train"], 10) == [(4, 5), (4, 5)]


def test_csv_of_several_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\n0.png,cat;dog\n1.png,\n2.png,dog\n")
    listed = read_dataset(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("path,cat,dog\n0.png,1,1\n1.png,0,0\n2.png,0,1\n")
    marked = read_dataset(tmp_path / "b.csv")
    for dataset in (listed, marked):
        assert (dataset.classes, dataset.multi_label) == (["cat", "dog"], True)
        assert [sample.labels for sample in dataset.splits["all"]] == [(0, 1), (), (1,)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "holds no images"),
        ("file,label\na.png,x\n", "needs the columns path and label"),
        ("path,label\na.png\n", "line 2: 2 cells are expected; got 1"),
        ("path,label\na.png,cat\nb.png,\n", "line 3: one label is expected"),
        ("path,label,split\na.png,cat,trian\n", "line 2: unknown split 'trian'; did you mean 'train'"),
        ("path,cat,dog\na.png,1,2\n", "line 2: column 'dog' must hold 0 or 1; got '2'"),
        ("path,label\n,cat\n", "line 2: no path"),
    ],
)
def test_what_is_wrong_in_a_csv_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=rf"a\.csv.*{message}"):
        read_dataset(tmp_path / "a.csv")


def test_labels_that_a_model_does_not_know_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\na.png,cat\nb.png,catt\n")
    with pytest.raises(InputError, match=r"line 3: unknown label 'catt'; did you mean 'cat'"):
        read_dataset(tmp_path / "a.csv", classes=["cat", "dog"])


def test_arrays(tmp_path: Path) -> None:
    images = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 2, 1, 0]))
    dataset = read_dataset(tmp_path / "a.npz")
    assert dataset.classes == ["0", "1", "2"]
    assert [sample.labels for sample in dataset.splits["all"]] == [(0,), (2,), (1,), (0,)]
    np.testing.assert_array_equal(read_image(dataset.splits["all"][1].image)[..., 0], images[1])  # type: ignore[arg-type]
    medmnist = {"train_images": images, "train_labels": np.array([[0], [1], [1], [0]]), "val_images": images[:1], "val_labels": [[1]]}
    np.savez(tmp_path / "b.npz", **medmnist, class_names=["good", "bad"])
    found = read_dataset(tmp_path / "b.npz")
    assert (found.classes, found.multi_label) == (["good", "bad"], False)
    assert found.splits["val"][0].labels == (1,)
    np.savez(tmp_path / "c.npz", images=images, labels=np.eye(4, 3, dtype=np.int64))
    assert read_dataset(tmp_path / "c.npz").multi_label
    assert [sample.labels for sample in read_dataset(tmp_path / "c.npz").splits["all"]] == [(0,), (1,), (2,), ()]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.full((2, 3, 3), np.nan), "labels": [0, 1]}, r"images\[0\]: holds NaN"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [0]}, "labels must be N or N, K for the 2 images; got 1"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [0, -1]}, "whole numbers from 0 up"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": [0.5, 1]}, "whole numbers from 0 up"),
        ({"images": np.zeros((2, 3), np.uint8), "labels": [0, 1]}, "got 2 x 3"),
        ({"images": np.zeros((2, 3, 3), np.int32), "labels": [0, 1]}, "got int32"),
        ({"images": np.zeros((2, 3, 3), np.uint8)}, "images has no labels beside it"),
        ({"pixels": np.zeros((2, 3, 3), np.uint8)}, "no array `images`"),
    ],
)
def test_what_is_wrong_in_arrays_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=rf"a\.npz.*{message}"):
        read_dataset(tmp_path / "a.npz")


def test_damaged_arrays_are_one_line(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 9, (1, 40, 40), np.uint8), labels=np.zeros(1, int))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    for position in (60, 220, 540):  # some of these the archive finds, some its decompression
        (tmp_path / "a.npz").write_bytes(data[:position] + bytes(20) + data[position + 20 :])
        with pytest.raises(InputError, match=r"a\.npz: cannot be read as \.npz arrays"):
            read_dataset(tmp_path / "a.npz")


def test_foreign_and_missing_data_sets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no archive")
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    for name, message in (
        ("a.npz", "cannot be read as .npz"),
        ("b.txt", "a data set is a folder"),
        ("empty", "cat: a class without images"),
        ("empty/cat", "no class folders"),
        ("none", "no such file or folder"),
    ):
        with pytest.raises(InputError, match=message):
            read_dataset(tmp_path / name)


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two classes or more"):
        check_for_training(divide(read_dataset(folder_of(tmp_path / "one", cat=4)), 0.2, 0))
    (tmp_path / "a.csv").write_text("path,label,split\na.png,cat,train\nb.png,dog,val\n")
    with pytest.raises(InputError, match="no image to train on of dog"):
        check_for_training(read_dataset(tmp_path / "a.csv"))


def test_damaged_and_missing_files_are_found_before_training(tmp_path: Path) -> None:
    root = folder_of(tmp_path, cat=3, dog=3)
    (root / "dog" / "1.png").write_bytes((root / "dog" / "1.png").read_bytes()[:40])
    samples = read_dataset(root).splits["all"]
    with pytest.raises(InputError, match=r"dog/1\.png: is truncated"):
        check_images(samples, 100)
    (root / "cat" / "0.png").unlink()
    (root / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"cat/0\.png: no such file \(2 images cannot be read\)"):
        check_images(samples, 0)


# --- augmentation ---

STRONG = AugmentationSettings(
    flip=0.5, flip_vertical=0.5, rand_augment=RandAugmentSettings(operations=3, probability=1.0), colour_jitter=0.4, erasing=1.0
)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_augmented_images_depend_on_the_generator_alone(seed: int, channels: int, height: int, width: int) -> None:
    image = np.random.default_rng(5).integers(0, 256, (height, width, channels)).astype(np.uint8)
    before = image.copy()
    preprocessing = PreprocessingSettings(size=(12, 16), channels=channels)  # type: ignore[arg-type]
    first, second = (augment(image, STRONG, preprocessing, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == (channels, 12, 16)
    assert first.dtype == torch.float32
    assert bool(first.isfinite().all())
    assert torch.equal(first, second)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("index", range(len(OPERATIONS)))
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_keep_the_range_and_change_something(index: int, channels: int) -> None:
    image = np.random.default_rng(6).random((9, 11, channels)).astype(np.float32) * 0.8 + 0.1
    found = OPERATIONS[index](image, 0.9, 1.0)
    assert found.shape == image.shape
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    grey_colour = index == 7 and channels == 1  # grey has no colour to change
    assert grey_colour or np.abs(found - image).max() > 0.02


def test_operations_do_what_their_names_say() -> None:
    image = np.linspace(0.2, 0.6, 25, dtype=np.float32).reshape(5, 5, 1)
    contrast, equalised, inverted = (OPERATIONS[i](image, 0.9, 1.0) for i in range(3))
    assert (float(contrast.min()), float(contrast.max())) == (0.0, 1.0)
    np.testing.assert_allclose(equalised.reshape(-1), np.linspace(0, 1, 25), atol=1e-6)
    np.testing.assert_allclose(inverted, 1 - image)
    np.testing.assert_allclose(OPERATIONS[3](image, 0.0, 1.0), image, atol=1e-6)
    brighter, darker = OPERATIONS[9](image, 0.5, 1.0), OPERATIONS[9](image, 0.5, -1.0)
    np.testing.assert_allclose(brighter, image * 1.45, rtol=1e-5)
    np.testing.assert_allclose(darker, image * 0.55, rtol=1e-5)
    assert len(np.unique(OPERATIONS[4](image, 0.9, 1.0))) == 2  # one bit
    np.testing.assert_allclose(OPERATIONS[13](image, 1.0 / 0.45 / 5, 1.0)[:, 1:], image[:, :-1], atol=1e-6)  # one pixel to the right


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_random_crops_lie_in_the_image(seed: int, height: int, width: int) -> None:
    image = np.arange(height * width).reshape(height, width, 1)
    crop = random_crop(image, (0.08, 1.0), (3 / 4, 4 / 3), np.random.default_rng(seed))
    assert crop.size > 0
    assert np.isin(crop, image).all()
    assert (np.diff(crop[:, 0, 0]) == width).all()


def test_mixing_keeps_the_sum_of_targets() -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8).contiguous()
    targets = torch.eye(4)
    for name in ("mixup", "cutmix"):
        torch.manual_seed(0)
        settings_ = AugmentationSettings(**{name: 1.0})  # type: ignore[arg-type]
        mixed, found = mix(images, targets, settings_)
        torch.testing.assert_close(found.sum(dim=1), torch.ones(4))
        share = float(found[0, 0])
        assert 0 < share < 1
        torch.testing.assert_close(mixed[0].mean(), torch.tensor(3 * (1 - share)))  # image 0 is 0, and mixed with image 3
        values = set(mixed[0].unique().tolist())
        assert values == {0.0, 3.0} if name == "cutmix" else len(values) == 1
        torch.manual_seed(0)
        assert torch.equal(mix(images, targets, settings_)[0], mixed)
    assert mix(images, targets, AugmentationSettings())[0] is images


def test_the_recipes_are_valid_and_the_papers_is_the_papers() -> None:
    assert list_recipes() == ["generic", "imagenet", "transfer"]
    for name in list_recipes():
        assert load_recipe(name).name == name
    imagenet = load_recipe("imagenet")
    found = imagenet.augmentation
    assert found.rand_augment == RandAugmentSettings(operations=2, magnitude=9, magnitude_std=0.5, probability=0.5)
    assert (found.mixup, found.cutmix, found.erasing, imagenet.label_smoothing) == (0.8, 1.0, 0.25, 0.1)
    with pytest.raises(InputError, match="did you mean 'imagenet'"):
        load_recipe("imagnet")


# --- metrics ---


def test_auc_and_average_precision_by_hand() -> None:
    truth = np.array([1, 0, 1, 0, 0], bool)
    scores = np.array([0.9, 0.8, 0.7, 0.7, 0.1])
    assert roc_auc(scores, truth) == pytest.approx((3 + 1.5) / 6)  # 0.9 beats three; 0.7 beats one and ties with one
    assert average_precision(scores, truth) == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)
    assert np.isnan(roc_auc(scores, np.ones(5, bool)))
    assert np.isnan(average_precision(scores, np.zeros(5, bool)))


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=80, deadline=None)
def test_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([score for score, _ in pairs], float), np.array([kind for _, kind in pairs])
    if not truth.any() or truth.all():
        return
    gaps = scores[truth][:, None] - scores[~truth][None]
    assert roc_auc(scores, truth) == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def test_single_label_metrics() -> None:
    scores = np.eye(6)[[0, 1, 2, 0]] * 0.5 + np.linspace(0.0, 0.05, 6)
    truth = truth_table([[0], [1], [1], [5]], 6)
    found = classification_metrics(scores, truth, list("abcdef"), multi_label=False)
    assert found["top1"] == 0.5
    assert found["top5"] == 1.0
    assert found["mean_class_accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["accuracy/b"] == 0.5
    assert np.isnan(found["accuracy/c"])
    assert np.isnan(found["auc/c"])  # no image of it
    assert found["auc"] == pytest.approx(np.mean([found[f"auc/{name}"] for name in "abf"]))
    assert ranks(scores, np.array([0, 1, 1, 5])).tolist() == [0, 0, 4, 1]
    counts = confusion_matrix(np.array([0, 1, 1, 5]), np.array([0, 1, 2, 0]), 6)
    assert (counts[0, 0], counts[1, 1], counts[1, 2], counts[5, 0], counts.sum()) == (1, 1, 1, 1, 4)


def test_of_equal_scores_the_first_class_counts() -> None:
    assert ranks(np.ones((3, 4)), np.array([0, 1, 3])).tolist() == [0, 1, 3]


def test_multi_label_metrics() -> None:
    scores = np.array([[0.9, 0.2], [0.8, 0.6], [0.3, 0.7], [0.1, 0.1]])
    truth = truth_table([[0], [0, 1], [1], [1]], 2)
    found = classification_metrics(scores, truth, ["a", "b"], multi_label=True)
    assert found["average_precision/a"] == 1.0
    assert found["average_precision/b"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["auc/b"] == pytest.approx(2 / 3)
    assert found["exact_match"] == 0.75
    assert found["f1"] == pytest.approx((1 + 2 * 2 / 5) / 2)


def test_checksums_of_the_test_images_are_right(tmp_path: Path) -> None:
    """The walk over a PNG's parts stops at its end: what follows does not matter."""
    path = save(tmp_path / "a.png", RED_GREEN)
    assert zlib.crc32(b"IEND") == struct.unpack(">I", path.read_bytes()[-4:])[0]
    path.write_bytes(path.read_bytes() + b"more")
    np.testing.assert_array_equal(read_image(path), RED_GREEN)


# --- what once went wrong ---


def test_mended_class_order_does_not_depend_on_the_hash_seed() -> None:
    names = ["001", "01", "1", "9", "10", "a", "b"]
    for order in itertools.permutations(names[:5]):
        assert sorted([*order, "b", "a"], key=natural) == names


def test_mended_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "valid"):
        folder_of(tmp_path / split, a=1, b=1)
    with pytest.raises(InputError, match="valid: val beside it is the split 'val' as well"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("intensity", ["type", "image"])
@pytest.mark.parametrize(("given", "channels"), [(3, 1), (1, 3)])
def test_mended_augmentation_converts_the_channels_of_any_type(dtype: type, intensity: Any, given: int, channels: Any) -> None:
    image = np.random.default_rng(0).random((8, 8, given))
    pixels = (image * 255).astype(np.uint8) if dtype is np.uint8 else image.astype(dtype)
    preprocessing = PreprocessingSettings(size=8, channels=channels, intensity=intensity)
    still = AugmentationSettings(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0)
    found = augment(pixels, still, preprocessing, np.random.default_rng(0))
    torch.testing.assert_close(found, preprocess(pixels, preprocessing))


def test_groups_are_never_divided(tmp_path: Path) -> None:
    lines = ["path,label,group", *(f"{i}.png,{'ab'[i % 2]},patient {i // 3}" for i in range(30))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    dataset = read_dataset(tmp_path / "t.csv")
    assert dataset.classes == ["a", "b"]
    parts = divide(dataset, 0.3, 0).splits
    groups = {split: {sample.group for sample in samples} for split, samples in parts.items()}
    assert len(groups["val"]) == 3
    assert not groups["train"] & groups["val"]
    assert sum(map(len, parts.values())) == 30


def test_a_registered_reader_takes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_READERS", {})
    path = tmp_path / "a.raw.gz"
    path.write_bytes(b"\x07")
    assert not files.is_image(path)

    @files.register_reader(".raw.gz")
    def read(path: Path) -> np.ndarray:
        return np.full((2, 3), path.read_bytes()[0], np.uint8)

    assert files.is_image(path)
    assert files.read_image(path).tolist() == [[[7]] * 3] * 2
    files.register_reader(".raw.gz")(lambda path: np.full((2, 3), 7.0))
    with pytest.raises(InputError, match="from 0 to 1"):
        files.read_image(path)


def test_a_frozen_backbone_keeps_its_weights_and_statistics() -> None:
    model = create_model("resnet18", num_classes=3)
    freeze_backbone(model, frozenset({"fc.weight", "fc.bias"}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimiser.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
