"""What tells images apart from others of the same name and size."""

import hashlib

import numpy as np

from trainables.data import Dataset, Split

Fingerprints = dict[str, str]  # `training` and, where the study is judged on it, `test`


def fingerprints(dataset: Dataset, split: str) -> Fingerprints:
    """Of the images that training and validation share, and of the test images where `split` is `test`."""
    names = repr(dataset.class_names).encode()
    found = {"training": fingerprint(names, dataset.train, dataset.validation)}
    return found | ({"test": fingerprint(names, dataset.test)} if split == "test" else {})


def fingerprint(names: bytes, *splits: Split) -> str:
    """32 hex digits of pixels, labels, their order and the classes' names; the same on every device."""
    digest = hashlib.sha256(names)
    for split in splits:
        for tensor in (split.images, split.labels):
            values = np.ascontiguousarray(tensor.cpu().numpy())
            digest.update(f"{values.dtype} {values.shape}".encode())
            digest.update(values)
    return digest.hexdigest()[:32]
