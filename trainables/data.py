"""Images resident on the device as uint8: read once, split once, augmented where they lie."""

import contextlib
import hashlib
import http.client
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from trainables.errors import InputError, nearest
from trainables.files import replacing

if TYPE_CHECKING:  # pydantic and torchvision are not needed by all who load images
    from torchvision.datasets import CIFAR10, SVHN

    from trainables.config import DataConfig

# scikit-learn and torchvision are imported where they are used: each worker would wait 2.7 s for both, twice as
# long as for torch.

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]
Part = TypeVar("Part")  # one of torchvision's data sets, train or test

DIGITS_TEST = 297  # of 1797, so that 1500 remain
PROGRESS_SECONDS = 5
LAYOUT = "a folder with images in train/<class>/ and test/<class>/ (torchvision's ImageFolder layout)"


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, C, H, W) and labels int64 (N,), both on the device.

    No part is ordered by class: any first n examples are a random sample.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Three parts and what a model needs to know about them.

    `mean` and `std` are per channel, in pixel units [0, 1], of the train part alone.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]


@dataclass(frozen=True)
class Source:
    """What a reader returns: images uint8 (N, C, H, W) and labels int64 (N,), not yet split."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    augmentation: str


def load(
    name: str,
    data_dir: StrPath | None = None,
    *,
    validation_fraction: float = 0.2,
    split_seed: int = 0,
    device: str | torch.device = "cpu",
) -> Dataset:
    """The data set `name`, its training images split into train and validation, on `device`.

    Args:
        name: A key of `READERS`.
        data_dir: Where the files lie, or are downloaded to (default `data`); `digits` needs none.
        validation_fraction: Share of the training images that becomes validation, in (0, 1).
        split_seed: Decides which; the same on every device. Test does not depend on it.

    Raises:
        InputError: If the name is unknown, the files cannot be had or used, or a class would be
            absent from train or validation.
    """
    if name not in READERS:
        raise InputError(f"dataset: {nearest(name, READERS)}")
    source = READERS[name](data_dir)
    train, validation = split_indices(source.labels, source.class_names, validation_fraction, split_seed)
    train_images = source.images[train]
    mean, std = channel_statistics(torch.from_numpy(train_images))
    return Dataset(
        name=name,
        train=resident(train_images, source.labels[train], device),
        validation=resident(source.images[validation], source.labels[validation], device),
        test=resident(source.test_images, source.test_labels, device),
        class_names=source.class_names,
        mean=mean,
        std=std,
        augmentation=source.augmentation,
    )


def configured(config: "DataConfig", device: str | torch.device = "cpu") -> Dataset:
    """The data set that `config` names; raises as `load`."""
    return load(config.name, config.data_dir, device=device)


def resident(images: np.ndarray, labels: np.ndarray, device: str | torch.device) -> Split:
    """The same values as tensors on `device`."""
    return Split(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))


def split_indices(
    labels: np.ndarray, class_names: Sequence[str], validation_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stratified, seeded partition of the training images: train's and validation's indices, shuffled.

    Raises:
        InputError: If the seed is out of range, or a class would be absent from either.
    """
    from sklearn.model_selection import train_test_split

    if not 0 <= seed < 2**32:
        raise InputError(f"split_seed: {seed} given; accepted: 0 to {2**32 - 1}")
    counts = np.bincount(labels, minlength=len(class_names))
    refusal = InputError(
        f"validation_fraction: {validation_fraction} given for {len(labels)} training images, {counts.min()} of "
        f"them of class {class_names[counts.argmin()]!r}; accepted: a fraction between 0 and 1 that leaves at least "
        "one example of each class in train and in validation, or more images"
    )
    try:
        train, validation = train_test_split(
            np.arange(len(labels)), test_size=float(validation_fraction), random_state=seed, stratify=labels
        )
    except ValueError:
        raise refusal from None
    if any(len(np.unique(labels[part])) < len(class_names) for part in (train, validation)):
        raise refusal
    return train, validation


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel, pixel units [0, 1].

    A constant channel gets 1 as its deviation, so that normalisation maps it to 0 rather than NaN.

    Args:
        images: (N, C, H, W), uint8.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        # 256 exact counts hold the whole distribution, without a float copy of the images
        weights = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = weights @ values
        means.append(mean.item())
        deviations.append((weights @ (values - mean) ** 2).sqrt().item() or 1.0)
    return tuple(means), tuple(deviations)


# Augmentation


def no_augmentation(images: Tensor, generator: Generator) -> Tensor:
    """The images themselves."""
    return images


def random_crop(images: Tensor, generator: Generator) -> Tensor:
    """Each image shifted by up to an eighth of its height and of its width (4 at 32), zeros where nothing was."""
    padding = images.shape[2] // 8, images.shape[3] // 8
    offsets = [
        torch.randint(2 * most + 1, (len(images),), generator=generator, device=images.device) for most in padding
    ]
    return crop(images, torch.stack(offsets), padding)


def random_crop_flip(images: Tensor, generator: Generator) -> Tensor:
    """`random_crop`, then each image mirrored left to right with probability 1/2."""
    cropped = random_crop(images, generator)
    mirrored = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], cropped.flip(3), cropped)


def crop(images: Tensor, offsets: Tensor, padding: tuple[int, int]) -> Tensor:
    """Windows of the original size from the zero-padded images, by one gather.

    Args:
        images: (N, C, H, W).
        offsets: (2, N), each image's first row and first column in its padded form, 0 to twice the padding.
        padding: Rows of zeros above and below, columns of zeros left and right.
    """
    n, channels, height, width = images.shape
    device = images.device
    image = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    row = (offsets[0][:, None] + torch.arange(height, device=device))[:, None, :, None]
    column = (offsets[1][:, None] + torch.arange(width, device=device))[:, None, None, :]
    rows, columns = padding
    return F.pad(images, [columns, columns, rows, rows])[image, channel, row, column]


AUGMENTATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "none": no_augmentation,
    "crop": random_crop,
    "crop_flip": random_crop_flip,
}


def augment(images: Tensor, augmentation: str, generator: Generator) -> Tensor:
    """A new random view of each image, made on the device without synchronising with it.

    Args:
        images: (N, C, H, W), uint8.
        augmentation: A key of `AUGMENTATIONS`.
        generator: On the device of `images`.

    Returns:
        (N, C, H, W), uint8.

    Raises:
        ValueError: If `augmentation` is unknown.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2.
    """
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation: {nearest(augmentation, AUGMENTATIONS)}")
    return AUGMENTATIONS[augmentation](images, generator)


def to_float(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1], any shape; what is float32 already stays."""
    return images if images.is_floating_point() else images.to(torch.float32) / 255


# Embedded and downloaded data sets


def digits(data_dir: StrPath | None) -> Source:
    """Scikit-learn's 1797 handwritten digits, 8x8, 17 shades of grey; nothing is read from `data_dir`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(labels)), test_size=DIGITS_TEST, random_state=0, stratify=labels)
    names = tuple(str(digit) for digit in bunch.target_names)
    return Source(images[rest], labels[rest], images[test], labels[test], names, "none")


def cifar10(data_dir: StrPath | None) -> Source:
    """CIFAR-10 (Krizhevsky 2009)."""
    from torchvision.datasets import CIFAR10

    return cifar(CIFAR10, data_dir)


def cifar100(data_dir: StrPath | None) -> Source:
    """CIFAR-100 (Krizhevsky 2009)."""
    from torchvision.datasets import CIFAR100

    return cifar(CIFAR100, data_dir)


def cifar(kind: "type[CIFAR10]", data_dir: StrPath | None) -> Source:
    """What both have in common."""

    def pixels(part: "CIFAR10") -> np.ndarray:
        return np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))

    train, test = present_or_downloaded(kind.__name__, kind, data_dir)
    labels, test_labels = np.array(train.targets, dtype=np.int64), np.array(test.targets, dtype=np.int64)
    return Source(pixels(train), labels, pixels(test), test_labels, tuple(train.classes), "crop_flip")


def svhn(data_dir: StrPath | None) -> Source:
    """Street View House Numbers (Netzer et al. 2011); never mirrored, since a mirrored digit is another sign."""

    from torchvision.datasets import SVHN

    def part(root: str, train: bool, download: bool = False) -> "SVHN":
        return SVHN(root, split="train" if train else "test", download=download)

    train, test = present_or_downloaded("SVHN", part, data_dir)
    images, test_images = np.ascontiguousarray(train.data), np.ascontiguousarray(test.data)
    return Source(images, train.labels, test_images, test.labels, tuple("0123456789"), "crop")


def present_or_downloaded(title: str, part: Callable[..., Part], data_dir: StrPath | None) -> tuple[Part, Part]:
    """Train and test part, downloaded where the folder does not hold them yet.

    Args:
        title: What the data set is called in an error.
        part: Opens one part, given `root`, and whether it is the `train` part and to `download`.
        data_dir: The folder; `data` if None.

    Raises:
        InputError: If they are neither there nor to be had.
    """
    root = os.path.expanduser(data_dir or "data")
    try:
        return part(root=root, train=True), part(root=root, train=False)
    except (RuntimeError, OSError):  # torchvision: not there, or not what its checksum says
        pass
    lock = os.path.join(root, f".{title}.lock")
    made = [path for path in (Path(root).absolute(), *Path(root).absolute().parents) if not path.exists()]
    try:
        os.makedirs(root, exist_ok=True)
        with FileLock(lock):  # torchvision's download is not safe for two at once
            return part(root=root, train=True, download=True), part(root=root, train=False, download=True)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        if made:
            with contextlib.suppress(OSError):  # what holds part of the download stays
                os.remove(lock)
                for path in made:
                    path.rmdir()
        raise InputError(
            f"data_dir: {root!r} given, which does not hold {title}, and the download failed ({reason(error)}); "
            f"accepted: a folder that holds {title} as torchvision stores it, or a writable one and a network"
        ) from None


def reason(error: Exception) -> str:
    """Kind and message of an error of another library, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


# Image folders


def imagefolder(data_dir: StrPath | None) -> Source:
    """Any folder in torchvision's ImageFolder layout with train/ and test/; images become RGB."""
    if not data_dir:
        raise InputError(f"data_dir: nothing given for dataset 'imagefolder'; accepted: {LAYOUT}")
    folder = os.path.expanduser(data_dir)
    try:
        class_names = folder_classes(folder)
        train = samples(folder, "train", class_names)
        test = samples(folder, "test", class_names)
        images = cached_images(folder, [path for path, _ in train + test])
    except OSError as error:
        raise unusable(folder, f"where {str(error.filename)!r} cannot be read ({error.strerror})") from None
    labels = np.array([label for _, label in train + test], dtype=np.int64)
    n = len(train)
    # a copy, since a view would keep the training images alive with the test images
    return Source(images[:n], labels[:n], images[n:].copy(), labels[n:], class_names, "crop_flip")


def unusable(folder: str, what: str) -> InputError:
    """The error for an image folder; names are quoted by repr, so that it stays on one line."""
    return InputError(f"data_dir: {folder!r} given, {what}; accepted: {LAYOUT}")


def folder_classes(folder: str) -> tuple[str, ...]:
    """The class folders of train/, sorted; those of test/ must be among them.

    Raises:
        InputError: If there are fewer than two, or test/ has others.
        OSError: If a folder cannot be listed.
    """
    if not os.listdir(folder):
        raise unusable(folder, "which is empty")
    from torchvision.datasets.folder import find_classes

    names = {}
    for part in ("train", "test"):
        try:
            names[part], _ = find_classes(os.path.join(folder, part))
        except FileNotFoundError:
            raise unusable(folder, f"whose {part}/ is missing or has no class folder") from None
    unknown = sorted(set(names["test"]) - set(names["train"]))
    if unknown:
        raise unusable(folder, f"whose test/ has classes that train/ lacks: {', '.join(map(repr, unknown))}")
    for name in names["train"]:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise unusable(folder, f"whose class folder {name!r} has a name that is not UTF-8") from None
    if len(names["train"]) < 2:
        raise unusable(folder, f"whose train/ has one class, {names['train'][0]!r}, of the two or more needed")
    return tuple(names["train"])


def samples(folder: str, part: str, class_names: Sequence[str]) -> list[tuple[str, int]]:
    """(path, label) of each image of a part, in an order that is shuffled but always the same.

    Raises:
        InputError: If a class folder holds no image.
        OSError: If a folder cannot be listed.
    """
    listed = []
    for label, name in enumerate(class_names):
        class_folder = os.path.join(folder, part, name)
        if not os.path.isdir(class_folder):  # test/ need not have every class
            continue
        paths = image_paths(class_folder)
        if not paths:
            raise unusable(folder, f"whose class folder {os.path.join(part, name)!r} holds no image")
        listed += [(path, label) for path in paths]
    return [listed[index] for index in np.random.default_rng(0).permutation(len(listed))]


def image_paths(class_folder: str) -> list[str]:
    """Image files below a folder, sorted; unlike torchvision's, a folder that cannot be listed is an OSError."""
    from torchvision.datasets.folder import is_image_file

    def fail(error: OSError) -> None:
        raise error

    walked, seen = [], set()
    for parent, folders, names in os.walk(class_folder, followlinks=True, onerror=fail):
        place = os.path.realpath(parent)
        folders[:] = [] if place in seen else sorted(folders)  # a link may lead back
        if place not in seen:
            walked.append((parent, sorted(names)))
        seen.add(place)
    return [os.path.join(parent, name) for parent, names in sorted(walked) for name in names if is_image_file(name)]


def cached_images(folder: str, paths: Sequence[str]) -> np.ndarray:
    """The images at `paths`, uint8 (N, 3, H, W), decoded once and kept until a file changes.

    The cache lies in the folder itself, or in the user's cache folder where that is not writable.

    Raises:
        InputError: If an image cannot be decoded, or differs in size.
        OSError: If a file is gone or out of reach.
    """
    name = f".adversarial-pareto-{fingerprint(folder, paths)}.npz"
    places = [Path(folder), user_cache(folder)]
    for place in places:
        images = read_cache(place / name, len(paths))
        if images is not None:
            return images
    images = decode_all(folder, paths)
    for place in places:
        try:
            write_cache(place / name, images)
            return images
        except OSError as error:
            logger.info("no cache in %s (%s)", place, reason(error))
    return images


def fingerprint(folder: str, paths: Sequence[str]) -> str:
    """Hash over relative paths, sizes and modification times, in order."""
    digest = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        digest.update(os.fsencode(f"{os.path.relpath(path, folder)}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()[:16]


def user_cache(folder: str) -> Path:
    """The place of one folder's cache in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    key = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    return Path(root, "adversarial-pareto", key)


def read_cache(path: Path, n_images: int) -> np.ndarray | None:
    """The cached images, or None where there are none or they are damaged (the zip format's CRC tells)."""
    if not os.path.exists(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive["images"]
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != n_images:
            raise ValueError(f"{images.dtype} {images.shape} is not uint8 ({n_images}, 3, H, W)")
        return images
    except Exception as error:  # damage raises almost anything, and decoding again mends it
        logger.warning("cache %s is damaged and will be rebuilt (%s)", path, reason(error))
        return None


def write_cache(path: Path, images: np.ndarray) -> None:
    """Writes the cache whole or not at all, and removes the caches of the folder's earlier states.

    Raises:
        OSError: If the place is not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, images=images)
    for stale in path.parent.glob(".adversarial-pareto-*.npz"):
        if stale != path:
            stale.unlink(missing_ok=True)


def decode_all(folder: str, paths: Sequence[str]) -> np.ndarray:
    """All images, uint8 (N, 3, H, W), decoded by a pool of threads (Pillow lets go of the lock).

    Raises:
        InputError: If one cannot be decoded, or differs in size from the first.
    """
    logger.info("decoding %d images of %s", len(paths), folder)
    first = decode(folder, paths[0])
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)
    reported = time.monotonic()
    with ThreadPoolExecutor() as pool:
        for index, image in enumerate(pool.map(partial(decode, folder), paths)):
            if image.shape != first.shape:
                sizes = f"{described(folder, paths[0], first)} and {described(folder, paths[index], image)}"
                raise unusable(folder, f"whose images differ in size: {sizes}")
            images[index] = image
            if time.monotonic() - reported > PROGRESS_SECONDS:
                logger.info("decoded %d of %d images", index + 1, len(paths))
                reported = time.monotonic()
    return images


def decode(folder: str, path: str) -> np.ndarray:
    """One image file as uint8 (3, H, W).

    Raises:
        InputError: If it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel, mode {image.mode}, which would be cut off")
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise unusable(
            folder, f"whose image {os.path.relpath(path, folder)!r} is unreadable ({reason(error)})"
        ) from None


def described(folder: str, path: str, image: np.ndarray) -> str:
    """An image's relative path and size, width first."""
    return f"{os.path.relpath(path, folder)!r} ({image.shape[2]}x{image.shape[1]})"


READERS: dict[str, Callable[[StrPath | None], Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "imagefolder": imagefolder,
}
