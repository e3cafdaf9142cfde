"""Data that needs no network: scikit-learn's digits with shifts, names of the US Census 1990."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import count
from typing import NamedTuple

import numpy as np

from .._boundary import number, one_of, positive_int

SHIFTS = ("none", "rotated", "inverted", "permuted labels", "held-out classes")
KINDS = ("surnames", "female", "male")
PAD, BOUNDARY = 0, 1  # tokens; letters follow, a = 2 to z = 27
VOCABULARY = 28


class Split(NamedTuple):
    """Inputs and labels to train on and to test on."""

    x: np.ndarray  # (n, 64), float32
    y: np.ndarray  # (n,), whole numbers
    x_test: np.ndarray
    y_test: np.ndarray


def digits(shift: str = "none", *, angle: float = 90, seed: int = 0, test: int = 597) -> Split:
    """1,797 handwritten digits of 8 × 8 pixels, shifted as asked, split into training and test.

    shift: "none"; "rotated" by `angle` degrees; "inverted", black for white; "permuted labels",
    each digit under another's name; or "held-out classes", only 5 to 9, where "none" has all ten.
    Pixels are scaled to 0..1 and the mean image of the upright training digits is taken off. The
    split is drawn from `seed` and the same for every shift. Needs scikit-learn (and SciPy, which it
    brings).
    """
    from sklearn.datasets import load_digits

    one_of("shift", shift, SHIFTS)
    bunch = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(bunch.target))
    if not 0 < positive_int("test", test) < len(order):
        raise ValueError(f"test: expected from 1 to {len(order) - 1}, got {test}")
    images, labels = bunch.images / 16, bunch.target
    mean = images[order[test:]].mean(0)
    if shift == "rotated":
        images = _rotated(images, number("angle", angle))
    elif shift == "inverted":
        images = 1 - images
    elif shift == "permuted labels":
        labels = ((np.arange(10) + 1 + rng.integers(9)) % 10)[labels]
    x = (images - mean).reshape(-1, 64).astype(np.float32)
    if shift == "held-out classes":
        order_test, order_train = (part[labels[part] >= 5] for part in np.split(order, [test]))
    else:
        order_test, order_train = np.split(order, [test])
    return Split(x[order_train], labels[order_train], x[order_test], labels[order_test])


def _rotated(images: np.ndarray, angle: float) -> np.ndarray:
    from scipy.ndimage import rotate

    if angle % 90 == 0:
        return np.rot90(images, int(angle // 90), axes=(1, 2))
    return rotate(images, angle, axes=(1, 2), reshape=False, order=1)


def names(kind: str = "surnames") -> list[str]:
    """Names in lower case, the most frequent first: 20,000 surnames, or first names by sex."""
    text = files("minidora.training").joinpath("names", f"{one_of('kind', kind, KINDS)}.txt")
    return text.read_text(encoding="ascii").split()


class Words(NamedTuple):
    """Words as a language model sees them, (n, t) each."""

    tokens: np.ndarray  # BOUNDARY, then the letters, then PAD
    targets: np.ndarray  # the letters, then BOUNDARY, then -1, which does not count
    padding: np.ndarray  # True where tokens are PAD


def encode(words: Sequence[str], length: int) -> Words:
    """Words of a to z, no longer than length - 1, as tokens to read and targets to predict.

    >>> encode(["ab"], 4).tokens.tolist(), encode(["ab"], 4).targets.tolist()
    ([[1, 2, 3, 0]], [[2, 3, 1, -1]])
    """
    tokens = np.full((len(words), positive_int("length", length)), PAD)
    targets = np.full(tokens.shape, -1)
    for i, word in enumerate(words):
        if not (word.isascii() and word.isalpha() and word.islower()) or len(word) >= length:
            raise ValueError(
                f"words: expected letters a to z, {length - 1} at most, got {word!r} at {i}"
            )
        letters = np.frombuffer(word.encode(), np.uint8) - ord("a") + 2
        tokens[i, 0], tokens[i, 1 : len(word) + 1] = BOUNDARY, letters
        targets[i, : len(word)], targets[i, len(word)] = letters, BOUNDARY
    return Words(tokens, targets, tokens == PAD)


def decode(tokens: np.ndarray) -> list[str]:
    """Each row's letters up to the first BOUNDARY after the start.

    >>> decode(np.array([[1, 2, 3, 1, 9]]))
    ['ab']
    """
    words = []
    for row in np.asarray(tokens):
        letters = row[1:]
        ends = np.flatnonzero(letters < 2)
        letters = letters[: ends[0]] if len(ends) else letters
        words.append("".join(chr(int(t) - 2 + ord("a")) for t in letters))
    return words


def batches(
    arrays: Sequence[np.ndarray], size: int, rng: np.random.Generator, *, start: int = 0
) -> Iterator[tuple]:
    """Endless random batches of rows of all arrays, each pass over the data in a new order.

    A NamedTuple of arrays gives batches of the same type. start leaves out as many batches, so that
    a run can go on with the seed it began with. Raises ValueError for no rows, or arrays of
    different lengths.
    """
    positive_int("size", size)
    if start < 0:
        raise ValueError(f"start: expected 0 or more, got {start}")
    lengths = {len(a) for a in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"arrays: expected one number of rows, above 0, got {sorted(lengths)}")
    return _endless(arrays, size, lengths.pop(), rng, start)


def _endless(
    arrays: Sequence[np.ndarray], size: int, n: int, rng: np.random.Generator, start: int
) -> Iterator[tuple]:
    make = getattr(type(arrays), "_make", tuple)
    left = np.empty(0, int)
    for i in count():
        while len(left) < size:
            left = np.concatenate([left, rng.permutation(n)])
        rows, left = left[:size], left[size:]
        if i >= start:
            yield make(a[rows] for a in arrays)
