import os
import pickle
import random
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torchvision.datasets import CIFAR10, CIFAR100, SVHN, ImageFolder

from trainables import data
from trainables.data import AUGMENTATIONS, augment, channel_statistics, crop, load, to_float
from trainables.errors import InputError

SHAPE = (8, 8, 3)  # height, width, channels of the images these tests draw


def write_image(path: Path, seed: int, shape: tuple[int, ...] = SHAPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def write_folder(folder: Path, n_train: int = 10, n_test: int = 3, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """An image folder whose images all differ."""
    seeds = iter(range(10_000))
    for part, n in (("train", n_train), ("test", n_test)):
        for name in classes:
            for index in range(n):
                write_image(folder / part / name / f"{index:02}.png", next(seeds))
    return folder


def rows(images: torch.Tensor) -> list[bytes]:
    """Each image as bytes, sorted: what a set of images holds, whatever its order."""
    return sorted(image.numpy().tobytes() for image in images)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def refuse_to_decode(*args: object) -> None:
    raise AssertionError("an image was decoded")


def caches(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(".adversarial-pareto-*"))


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty and apart from the real one."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


# Splits


def test_digits_are_scaled_to_all_of_uint8():
    dataset = load("digits")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1200, 300, 297)
    assert dataset.train.images.shape == (1200, 1, 8, 8) and dataset.train.images.dtype == torch.uint8
    assert dataset.train.labels.dtype == torch.int64
    assert (dataset.num_classes, dataset.in_channels, dataset.augmentation) == (10, 1, "none")
    assert dataset.class_names == tuple("0123456789")
    together = torch.cat([part.images for part in (dataset.train, dataset.validation, dataset.test)])
    expected = [[round(v * 255 / 16) for v in image.ravel()] for image in load_digits().images]
    assert rows(together) == sorted(bytes(image) for image in expected)


def test_split_is_a_partition_of_the_training_images(tmp_path):
    folder = write_folder(tmp_path)
    dataset = load("imagefolder", folder)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (16, 4, 6)
    files = ImageFolder(folder / "train", transform=lambda image: torch.tensor(np.asarray(image)).permute(2, 0, 1))
    expected = {image.numpy().tobytes(): label for image, label in files}
    assert len(expected) == 20
    found = [
        (image.numpy().tobytes(), int(label))
        for part in (dataset.train, dataset.validation)
        for image, label in zip(part.images, part.labels, strict=True)
    ]
    assert sorted(found) == sorted(expected.items())


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_split_is_stratified(fraction):
    dataset = load("digits", validation_fraction=fraction)
    n_train, n_validation = (torch.bincount(part.labels, minlength=10) for part in (dataset.train, dataset.validation))
    expected = fraction * (n_train + n_validation)
    assert (n_validation - expected).abs().max() < 1


def test_split_is_decided_by_its_seed():
    first, again, other = (load("digits", split_seed=seed) for seed in (3, 3, 4))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part).images, getattr(again, part).images)
        assert torch.equal(getattr(first, part).labels, getattr(again, part).labels)
    assert rows(first.validation.images) != rows(other.validation.images)


def test_test_images_do_not_depend_on_the_split():
    first, other = load("digits", split_seed=3), load("digits", split_seed=4, validation_fraction=0.4)
    assert torch.equal(first.test.images, other.test.images)
    assert torch.equal(first.test.labels, other.test.labels)


def test_no_part_is_ordered_by_class(tmp_path):
    dataset = load("imagefolder", write_folder(tmp_path, n_train=50, n_test=10, classes=("cat", "dog", "eel", "fox")))
    for part in (dataset.train, dataset.validation, dataset.test):
        assert set(part.labels[:10].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("n_train", "fraction"), [(10, 0.01), (10, 0.99), (1, 0.5), (10, 0.0), (10, 1.0), (10, -1), (10, float("nan"))]
)
def test_split_that_starves_a_class_is_refused(tmp_path, n_train, fraction):
    folder = write_folder(tmp_path, n_train=n_train)
    with pytest.raises(
        InputError, match=rf"^validation_fraction: {fraction} given for {2 * n_train} .* '(cat|dog)'"
    ) as e:
        load("imagefolder", folder, validation_fraction=fraction)
    assert "\n" not in str(e.value)


def test_split_without_a_rare_class_in_validation_is_refused(tmp_path):
    folder = write_folder(tmp_path)
    for index in (0, 1):
        write_image(folder / "train" / "rare" / f"{index}.png", 100 + index)
    with pytest.raises(InputError, match="22 training images, 2 of them of class 'rare'"):
        load("imagefolder", folder, validation_fraction=0.15)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_split_seed_out_of_range_is_refused(seed):
    with pytest.raises(InputError, match=f"^split_seed: {seed} given; accepted: 0 to 4294967295$"):
        load("digits", split_seed=seed)


# Statistics


def test_mean_and_std_are_numpys_over_train_alone(tmp_path):
    dataset = load("imagefolder", write_folder(tmp_path))
    pixels = dataset.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_constant_channel_has_unit_std():
    mean, std = channel_statistics(torch.full((5, 1, 4, 4), 51, dtype=torch.uint8))
    assert mean == (51 / 255,) and std == (1.0,)


# Augmentation


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(1, 256, (200, 3, 32, 32), generator=generator(1), dtype=torch.uint8)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 3, 32, 32), (5, 3, 16, 24), (5, 3, 4, 4), (0, 3, 32, 32)])
def test_augmentation_keeps_shape_type_and_input(augmentation, shape):
    images = torch.randint(0, 256, shape, generator=generator(), dtype=torch.uint8)
    before = images.clone()
    augmented = augment(images, augmentation, generator())
    assert augmented.shape == shape and augmented.dtype == torch.uint8
    assert torch.equal(images, before)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_augmentation_is_decided_by_its_generator(images, augmentation):
    first, again, other = (augment(images, augmentation, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (augmentation == "none")


def test_no_augmentation_returns_its_input(images):
    assert augment(images, "none", generator()) is images


def test_crop_is_a_slice_of_the_padded_image(images):
    cropped = augment(images, "crop", generator(5))
    tops, lefts = torch.randint(9, (2, 200), generator=generator(5))
    assert set(tops.tolist()) == set(lefts.tolist()) == set(range(9))
    padded = F.pad(images, (4, 4, 4, 4))
    for image, window, top, left in zip(padded, cropped, tops, lefts, strict=True):
        assert torch.equal(window, image[:, top : top + 32, left : left + 32])


def test_centred_crop_is_the_image(images):
    assert torch.equal(crop(images, torch.full((2, 200), 4), (4, 4)), images)


def test_each_axis_is_shifted_by_an_eighth_of_its_own_length():
    image = torch.zeros(300, 1, 32, 16, dtype=torch.uint8)
    image[:, :, 16, 8] = 1
    _, _, rows, columns = augment(image, "crop", generator(2)).nonzero(as_tuple=True)
    assert set(rows.tolist()) == set(range(12, 21)) and set(columns.tolist()) == set(range(6, 11))


def test_flip_mirrors_about_half_of_the_images(images):
    cropped = augment(images, "crop", generator(5))
    flipped = augment(images, "crop_flip", generator(5))
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, cropped, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, cropped, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130


def test_unknown_augmentation_is_refused(images):
    with pytest.raises(ValueError, match="augmentation: 'flop'.*accepted: crop, crop_flip, none"):
        augment(images, "flop", generator())


def test_to_float_maps_0_to_255_onto_0_to_1():
    values = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(to_float(values), torch.linspace(0, 1, 256))
    assert to_float(values)[[0, 255]].tolist() == [0.0, 1.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_split_is_the_same_and_augmentation_does_not_synchronise():
    on_gpu, on_cpu = load("digits", device="cuda"), load("digits")
    assert torch.equal(on_gpu.validation.images.cpu(), on_cpu.validation.images)
    on_device = torch.Generator("cuda").manual_seed(0)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for augmentation in AUGMENTATIONS:
            augment(on_gpu.train.images, augmentation, on_device)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


# Image folders and their cache


def test_real_jpeg_images_load(cifar_folder):
    dataset = load("imagefolder", cifar_folder)
    assert dataset.train.images.shape == (320, 3, 32, 32)
    assert dataset.validation.images.shape == (80, 3, 32, 32)
    assert dataset.test.images.shape == (200, 3, 32, 32)
    assert torch.bincount(dataset.test.labels).tolist() == [20] * 10
    assert (dataset.num_classes, dataset.in_channels, dataset.augmentation) == (10, 3, "crop_flip")
    assert dataset.class_names[:3] == ("airplane", "automobile", "bird")
    first = next((cifar_folder / "test" / "cat").iterdir())
    expected = np.asarray(Image.open(first)).transpose(2, 0, 1)
    assert expected.tobytes() in rows(dataset.test.images[dataset.test.labels == dataset.class_names.index("cat")])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_images_become_rgb(tmp_path, mode):
    folder = write_folder(tmp_path)
    for path in folder.rglob("*.png"):
        Image.open(path).convert(mode).save(path)
    images = load("imagefolder", folder).test.images
    assert rows(images) == sorted(
        np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).tobytes() for path in folder.glob("test/*/*.png")
    )


def test_nested_files_count_and_other_files_do_not(tmp_path):
    folder = write_folder(tmp_path)
    write_image(folder / "test" / "cat" / "more" / "00.PNG", 500)
    (folder / "test" / "cat" / "notes.txt").write_text("not an image")
    assert len(load("imagefolder", folder).test) == 7


def test_a_link_that_leads_back_doubles_no_image(tmp_path):
    folder = write_folder(tmp_path / "data")
    (folder / "test" / "cat" / "loop").symlink_to(folder / "test")
    (folder / "test" / "dog" / "self").symlink_to(folder / "test" / "dog")
    elsewhere = write_image(tmp_path / "elsewhere" / "00.png", 500).parent
    (folder / "test" / "dog" / "linked").symlink_to(elsewhere)
    # The loop leads to both classes' images once, the link to one more.
    assert torch.bincount(load("imagefolder", folder).test.labels).tolist() == [3 + 3 + 1, 3 + 1]


def test_test_may_lack_a_class(tmp_path):
    folder = write_folder(tmp_path)
    for path in (folder / "test" / "cat").iterdir():
        path.unlink()
    (folder / "test" / "cat").rmdir()
    assert load("imagefolder", folder).test.labels.tolist() == [1, 1, 1]


def test_second_load_decodes_nothing_and_equals_the_first(tmp_path, monkeypatch):
    folder = write_folder(tmp_path)
    first = load("imagefolder", folder)
    monkeypatch.setattr(data.Image, "open", refuse_to_decode)
    second = load("imagefolder", str(folder))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part).images, getattr(second, part).images)
        assert torch.equal(getattr(first, part).labels, getattr(second, part).labels)
    assert (first.mean, first.std) == (second.mean, second.std)
    assert [path.parent for path in caches(folder)] == [folder]


def test_changed_folder_is_decoded_again_and_its_stale_cache_removed(tmp_path):
    folder = write_folder(tmp_path)
    before, (stale,) = load("imagefolder", folder), caches(folder)
    changed = write_image(folder / "test" / "cat" / "00.png", 500)
    os.utime(changed, (1, 1))
    after, (fresh,) = load("imagefolder", folder), caches(folder)
    assert fresh != stale
    assert rows(before.test.images) != rows(after.test.images)
    assert np.asarray(Image.open(changed)).transpose(2, 0, 1).tobytes() in rows(after.test.images)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickled(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, images=np.array([print], dtype=object))


def other_images(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, images=np.zeros((1, 3, 8, 8), dtype=np.uint8))


def other_array(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize("damage", [truncate, flip_a_pixel, empty, pickled, other_images, other_array])
def test_damaged_cache_is_rebuilt(tmp_path, damage):
    folder = write_folder(tmp_path)
    first, (cache,) = load("imagefolder", folder), caches(folder)
    whole = data.read_cache(cache, 26)
    damage(cache)
    assert data.read_cache(cache, 26) is None
    second = load("imagefolder", folder)
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.images, second.test.images)
    np.testing.assert_array_equal(data.read_cache(cache, 26), whole)


def test_cache_damaged_anywhere_is_never_believed(tmp_path):
    cache = tmp_path / "cache.npz"
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    data.write_cache(cache, images)
    content = cache.read_bytes()
    for position in random.Random(0).sample(range(len(content)), 200):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        cache.write_bytes(damaged)
        found = data.read_cache(cache, 4)
        assert found is None or np.array_equal(found, images)


def refuse_writes_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = data.write_cache

    def refusing(path: Path, images: np.ndarray) -> None:
        if path.is_relative_to(folder):
            raise PermissionError(13, "Permission denied", str(path))
        write(path, images)

    monkeypatch.setattr(data, "write_cache", refusing)


def test_folder_that_is_not_writable_is_cached_for_the_user(tmp_path, monkeypatch, user_cache):
    folder = write_folder(tmp_path)
    refuse_writes_below(folder, monkeypatch)
    first = load("imagefolder", folder)
    assert caches(folder) == [] and len(caches(user_cache)) == 1
    monkeypatch.setattr(data.Image, "open", refuse_to_decode)
    assert torch.equal(load("imagefolder", folder).train.images, first.train.images)


def test_users_caches_of_two_folders_live_together(tmp_path, monkeypatch, user_cache):
    one, two = write_folder(tmp_path / "one"), write_folder(tmp_path / "two", n_train=4)
    refuse_writes_below(tmp_path, monkeypatch)
    load("imagefolder", one), load("imagefolder", two, validation_fraction=0.5)
    assert len(caches(user_cache)) == 2


def test_nowhere_to_cache_is_no_error(tmp_path, monkeypatch):
    folder = write_folder(tmp_path)
    refuse_writes_below(Path("/"), monkeypatch)
    assert len(load("imagefolder", folder).test) == 6


def test_interrupted_write_leaves_neither_cache_nor_rest(tmp_path, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    folder = write_folder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        load("imagefolder", folder)
    assert caches(folder) == []


def test_decoding_reports_progress(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(data, "PROGRESS_SECONDS", -1)
    with caplog.at_level("INFO"):
        load("imagefolder", write_folder(tmp_path))
    assert "decoded 13 of 26 images" in caplog.text


# What the user can get wrong


def no_folder(folder: Path) -> None:
    folder.rmdir()


def a_file(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("")


def nothing_in_it(folder: Path) -> None:
    pass


def no_train(folder: Path) -> None:
    write_image(folder / "test" / "cat" / "0.png", 0)


def no_test(folder: Path) -> None:
    write_image(folder / "train" / "cat" / "0.png", 0)


def train_is_a_file(folder: Path) -> None:
    (folder / "train").write_text("")


def no_class_folders(folder: Path) -> None:
    write_image(folder / "train" / "0.png", 0)


def empty_train_class(folder: Path) -> None:
    write_folder(folder)
    (folder / "train" / "eel").mkdir()


def empty_test_class(folder: Path) -> None:
    write_folder(folder)
    write_image(folder / "train" / "eel" / "0.png", 0)
    (folder / "test" / "eel").mkdir()
    (folder / "test" / "eel" / "notes.txt").write_text("")


def unknown_test_classes(folder: Path) -> None:
    write_folder(folder)
    write_image(folder / "test" / "eel" / "0.png", 0)
    write_image(folder / "test" / "fox" / "0.png", 0)


def one_class(folder: Path) -> None:
    write_folder(folder, classes=("cat",))


def not_an_image(folder: Path) -> None:
    write_folder(folder)
    (folder / "test" / "dog" / "01.png").write_text("not an image")


def truncated_image(folder: Path) -> None:
    write_folder(folder)
    truncate(folder / "train" / "dog" / "01.png")


def two_sizes(folder: Path) -> None:
    write_folder(folder)
    write_image(folder / "train" / "dog" / "01.png", 0, (9, 10, 3))


def dangling_link(folder: Path) -> None:
    write_folder(folder)
    (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere.png")


def awkward_name(folder: Path) -> None:
    write_folder(folder)
    (folder / "train" / "dog" / "two\nlines.png").write_text("not an image")


def sixteen_bits(folder: Path) -> None:
    write_folder(folder)
    Image.fromarray(np.full(SHAPE[:2], 30_000, dtype=np.uint16)).save(folder / "train" / "dog" / "01.png")


def floats(folder: Path) -> None:
    write_folder(folder)
    Image.fromarray(np.full(SHAPE[:2], 0.5, dtype=np.float32)).save(folder / "train" / "dog" / "01.tiff")


def name_of_other_bytes(folder: Path) -> None:
    write_folder(folder, classes=("cat", os.fsdecode(b"caf\xe9")))


MISTAKES = [
    (no_folder, r"where '.*data' cannot be read \(No such file or directory\)"),
    (a_file, r"where '.*data' cannot be read \(Not a directory\)"),
    (nothing_in_it, "which is empty"),
    (no_train, "whose train/ is missing or has no class folder"),
    (no_test, "whose test/ is missing or has no class folder"),
    (train_is_a_file, r"where '.*data/train' cannot be read \(Not a directory\)"),
    (no_class_folders, "whose train/ is missing or has no class folder"),
    (empty_train_class, "whose class folder 'train/eel' holds no image"),
    (empty_test_class, "whose class folder 'test/eel' holds no image"),
    (unknown_test_classes, "whose test/ has classes that train/ lacks: 'eel', 'fox'"),
    (one_class, "whose train/ has one class, 'cat'"),
    (not_an_image, "whose image 'test/dog/01.png' is unreadable"),
    (truncated_image, "whose image 'train/dog/01.png' is unreadable"),
    (two_sizes, r"(?=.*'train/dog/01.png' \(10x9\)).*'train/\w+/\d+.png' \(8x8\)"),
    (dangling_link, r"where '.*gone.png' cannot be read \(No such file or directory\)"),
    (awkward_name, r"whose image 'train/dog/two\\nlines.png' is unreadable"),
    (sixteen_bits, r"whose image 'train/dog/01.png' is unreadable \(ValueError: more than 8 bits a channel, mode I"),
    (floats, r"whose image 'train/dog/01.tiff' is unreadable \(ValueError: more than 8 bits a channel, mode F"),
    (name_of_other_bytes, r"whose class folder 'caf\\udce9' has a name that is not UTF-8"),
]


@pytest.mark.parametrize(("mistake", "what"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_unusable_folder_is_refused_in_one_line(tmp_path, mistake, what):
    folder = tmp_path / "data"
    folder.mkdir()
    mistake(folder)
    pattern = rf"\Adata_dir: '.*/data' given, .*{what}.*; accepted: a folder with images in train/<class>/[^\n]*\Z"
    with pytest.raises(InputError, match=pattern) as error:
        load("imagefolder", folder)
    assert "\n" not in str(error.value)
    assert caches(tmp_path) == []


@pytest.mark.parametrize("given", [None, ""])
def test_imagefolder_needs_data_dir(given):
    with pytest.raises(InputError, match=r"^data_dir: nothing given .*; accepted: a folder .*$"):
        load("imagefolder", given)


@pytest.mark.parametrize("forbidden", ["", "train", "train/cat", "test/dog/more"])
def test_folder_that_may_not_be_listed_is_refused(tmp_path, monkeypatch, forbidden):
    folder = write_folder(tmp_path)
    write_image(folder / "test/dog/more/0.png", 0)
    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing_to_list(folder / forbidden, getattr(os, name)))
    with pytest.raises(InputError, match=rf"^data_dir: .*{forbidden}' cannot be read \(Permission denied\).*$"):
        load("imagefolder", folder)


def refusing_to_list(forbidden: Path, listing):
    """`os.listdir` or `os.scandir` for one without the right to read `forbidden`; root has every right."""

    def restricted(path):
        if Path(path) == forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    return restricted


def test_image_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def forbid(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(data.Image, "open", forbid)
    with pytest.raises(InputError, match=r"^data_dir: .* whose image 'train/\w+/\d+.png' is unreadable .*denied.*$"):
        load("imagefolder", write_folder(tmp_path))


@pytest.mark.parametrize(
    ("given", "near"), [("cifar", "cifar10"), ("Digits", "digits"), ("image-folder", "imagefolder")]
)
def test_unknown_dataset_is_refused_with_the_nearest_name(given, near):
    with pytest.raises(InputError, match=rf"^dataset: '{given}' \(did you mean '{near}.*'\?\); accepted: cifar10, .*$"):
        load(given)


# torchvision's data sets


def random_batch(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


def write_cifar(folder: Path, kind: type[CIFAR10], label_key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 training and 10 test images of two classes, as torchvision stores them, without checksums."""
    base = folder / kind.base_folder
    base.mkdir(parents=True)
    meta_key = kind.meta["key"]
    contents = {
        "a": {"data": random_batch(40).reshape(40, -1), label_key: [0, 1] * 20},
        "b": {"data": random_batch(10).reshape(10, -1), label_key: [1, 0] * 5},
        "names": {meta_key: ["cat", "dog"]},
    }
    for name, content in contents.items():
        (base / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(kind, "train_list", [["a", None]])
    monkeypatch.setattr(kind, "test_list", [["b", None]])
    monkeypatch.setattr(kind, "meta", {"filename": "names", "key": meta_key, "md5": None})


def write_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `write_cifar`; SVHN stores (H, W, C, N), and the digit 0 as 10."""
    for name, n in (("a.mat", 40), ("b.mat", 10)):
        labels = np.tile(np.arange(1, 11), n // 10)[:, None]
        scipy.io.savemat(folder / name, {"X": random_batch(n).transpose(2, 3, 1, 0), "y": labels})
    monkeypatch.setattr(SVHN, "split_list", {"train": ["", "a.mat", None], "test": ["", "b.mat", None]})


def write_downloaded(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "svhn":
        write_svhn(folder, monkeypatch)
    else:
        kind, label_key = {"cifar10": (CIFAR10, "labels"), "cifar100": (CIFAR100, "fine_labels")}[name]
        write_cifar(folder, kind, label_key, monkeypatch)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", fail)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_downloaded_dataset_loads_offline(tmp_path, monkeypatch, offline, name):
    write_downloaded(name, tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    dataset = load(name, tmp_path, validation_fraction=0.25)
    assert np.array_equal(dataset.test.images.numpy(), random_batch(10))
    assert rows(torch.cat([dataset.train.images, dataset.validation.images])) == rows(torch.tensor(random_batch(40)))
    first_labels = [1, 2, 3] if name == "svhn" else [1, 0, 1]
    assert dataset.test.labels[:3].tolist() == first_labels and dataset.test.labels.dtype == torch.int64
    assert dataset.class_names == (tuple("0123456789") if name == "svhn" else ("cat", "dog"))
    assert dataset.augmentation == ("crop" if name == "svhn" else "crop_flip")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_download_without_a_network_is_refused_in_one_line(tmp_path, offline, name):
    pattern = rf"\Adata_dir: '.*' given, which does not hold {name.upper()}, .*service not known.*; accepted: [^\n]*\Z"
    with pytest.raises(InputError, match=pattern):
        load(name, tmp_path / "made" / "for it")
    assert list(tmp_path.iterdir()) == []


def test_download_goes_into_data_by_default(tmp_path, monkeypatch, offline):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="^data_dir: 'data' given, which does not hold CIFAR10"):
        load("cifar10")


def test_download_into_a_file_is_refused(tmp_path, offline):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="^data_dir: '.*file' given, which does not hold CIFAR10"):
        load("cifar10", tmp_path / "file")
