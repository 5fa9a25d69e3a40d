"""What all tests share: the order in which they run, and real images, where they are at hand."""

import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

ARCHIVE = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
PER_CLASS = {"train": 40, "test": 20}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests only where they are asked for; files with slow ones first, so that those which run at once end
    together."""
    if not os.environ.get("TEST_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: set TEST_LONG=1"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some CIFAR-10 (JPEG) images of each class, 400 in train/ and 200 in test/, in ImageFolder layout."""
    if not ARCHIVE.is_file():
        pytest.skip(f"{ARCHIVE} is missing")
    folder = tmp_path_factory.mktemp("cifar")
    n_missing = 10 * sum(PER_CLASS.values())
    extracted: Counter[str] = Counter()
    with tarfile.open(ARCHIVE, "r|xz") as archive:
        for member in archive:
            parent = str(Path(member.name).parent)
            if member.isfile() and extracted[parent] < PER_CLASS[Path(member.name).parts[0]]:
                archive.extract(member, folder, filter="data")
                extracted[parent] += 1
                n_missing -= 1
            if n_missing == 0:
                return folder
    raise AssertionError(f"{ARCHIVE} lacks {n_missing} images")
