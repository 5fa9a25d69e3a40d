from trainables import data
from trainables.fingerprints import fingerprint


def test_a_fingerprint_tells_pixels_labels_order_and_classes_apart():
    digits = data.load("digits")
    split, names = digits.test, b"names"
    flipped = data.Split(split.images.flip(0), split.labels.flip(0))
    relabelled = data.Split(split.images, split.labels.roll(1))
    found = {fingerprint(names, part) for part in (split, flipped, relabelled, digits.train)}
    found |= {fingerprint(b"other names", split), fingerprint(names, split, split)}
    assert len(found) == 6
    assert fingerprint(names, split) == fingerprint(names, data.load("digits").test)
