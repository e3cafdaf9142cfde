"""Real sentences: read from pinned archives without running them, and split so nothing leaks."""

import hashlib
import io
import os
import re
import tarfile
import zipfile
from collections import Counter
from importlib import metadata

import numpy as np
import pytest

from minidora.experiments import sentences
from minidora.experiments.archives import MEMBER_LIMIT, Archive, NotFetchedError

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module", params=["docstrings", "sentiment"])
def task(request):
    try:
        return getattr(sentences, request.param)()
    except NotFetchedError as error:
        pytest.skip(str(error))


def packed(folder, project, files):
    """A wheel with these files, which pip takes for one."""
    folder.mkdir(exist_ok=True)
    info = f"{project}-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    path = folder / f"{project}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, text in (files | metadata).items():
            wheel.writestr(name, text)
    return Archive(project, "1.0", "MIT", hashlib.sha256(path.read_bytes()).hexdigest())


def wordy(topic, n):
    """Modules whose docstrings have no words in common."""
    texts = {i: " ".join(f"{topic}{chr(97 + i)}{c * 2}" for c in "abcdefgh") for i in range(n)}
    return {f"{topic}/m{i}.py": f'"""{text}."""\n' for i, text in texts.items()}


def task_of(monkeypatch, folder, **packages):
    """The docstrings of these packages, whatever the digest."""
    archives = tuple(packed(folder, name, files) for name, files in packages.items())
    monkeypatch.setattr(sentences, "PACKAGES", archives)
    monkeypatch.setattr(sentences, "_checked", lambda task: task)
    return sentences.docstrings(folder)


def everything(task):
    return [text for split in SPLITS for text in getattr(task, split).sentences]


def twins(texts, others, likeness):
    """Pairs whose sets of words have this share in common."""
    count = pytest.importorskip("sklearn.feature_extraction.text").CountVectorizer(binary=True)
    count.fit([*texts, *others])
    a, b = count.transform(texts), count.transform(others)  # (n, words), (m, words)
    shared = (a @ b.T).toarray()  # (n, m)
    union = np.asarray(a.sum(1)).reshape(-1, 1) + np.asarray(b.sum(1)).ravel() - shared
    return [(texts[i], others[j]) for i, j in np.argwhere(shared >= likeness * np.fmax(union, 1))]


def test_a_task_is_the_one_that_is_pinned(task):
    assert task.digest == sentences.DIGESTS[task.name]
    for split in (task.train, task.validation, task.test):
        assert split.labels.dtype == np.int64 and not split.labels.flags.writeable
        assert len(split.sentences) == len(split.labels) == len(split.groups) > 500
        assert set(split.labels) == set(range(len(task.classes)))
        assert all(3 <= len(text.split()) <= 60 for text in split.sentences)


def test_no_source_and_no_sentence_is_in_two_splits(task):
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        a, b = getattr(task, one), getattr(task, other)
        assert not set(a.groups) & set(b.groups)
        assert not set(a.sentences) & set(b.sentences)
        assert twins(a.sentences, b.sentences, 0.75) == []


def test_twins_are_seen():
    assert twins(["one two three four"], ["One two, three! Four five"], 0.75)
    assert not twins(["one two three four"], ["one two five six"], 0.75)


def test_no_docstring_names_its_package(task):
    if task.name == "sentiment":
        pytest.skip("its texts are not about packages")
    names = "sympy|networkx|nltk|django|sqlalchemy|cirq|bokeh|keras|trimesh|numpy|matplotlib"
    named = re.compile(rf"{names}|\b(mne|nx|np)\b", re.IGNORECASE)
    assert [text for text in everything(task) if named.search(text)] == []
    assert min(Counter(task.train.labels.tolist()).values()) >= 300


def test_a_docstring_is_made_plain(tmp_path, monkeypatch):
    text = '''def f():
    """Return an Abcde graph, as :class:`~abcde.core.Node` or ``abcde.edge`` does, of *all* the
    neighbours that Abcde's own `link <other>` has. See https://abcde.example for AbcdeError.

    Parameters follow, and are no part of it, nor are any of these further words of the text.
    """
'''
    task = task_of(monkeypatch, tmp_path, abcde={"a/f.py": text}, fghij=wordy("y", 12))
    assert [text for text in everything(task) if "neighbours" in text] == [
        "Return an graph, as or does, of all the neighbours that own link has. See for."
    ]


def test_a_long_docstring_ends_with_a_sentence(tmp_path, monkeypatch):
    first = "One " + "word " * 9 + "ends."
    files = {
        "x/a.py": f'"""{first} {"Then " * 60}."""',
        "x/b.py": f'"""{"Endless " * 70}."""',
        "x/c.py": '"""Under eight words, 1 2 3 4 5."""',
        "x/d.py": '"""Gives >>> the prompt and eight words more, which none of us wants."""',
    }
    task = task_of(monkeypatch, tmp_path, x=files, y=wordy("y", 12))
    assert [text for text in everything(task) if "y" not in text] == [first]


def test_near_duplicates_are_left_out(tmp_path, monkeypatch):
    text = "Counts the sheep that jump over a fence at night."
    files = {f"x/{i}.py": f'"""{text} {extra}"""' for i, extra in enumerate(["", "Or so.", "!"])}
    task = task_of(monkeypatch, tmp_path, x=files, y=files | wordy("y", 12))
    assert sum("sheep" in text for text in everything(task)) == 1


def test_what_is_read_is_never_run(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    text = f'"""The module says in eight or nine words nothing."""\nopen({str(ran)!r}, "w")\n'
    tested = '"""Tests that no module of tests is read, whatever it says."""'
    files = {"../../escaped.py": text, "/rooted.py": text[:20] + " most " + text[20:]}
    broken = {"x/old.py": 'print "no longer Python"', "x/nul.py": "\0", "x/a_test.py": tested}
    task = task_of(monkeypatch, tmp_path, x=files | broken, y=wordy("y", 12))
    assert sum("module" in text for text in everything(task)) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        f"{name}-1.0-py3-none-any.whl" for name in "xy"
    )


def test_a_huge_member_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=rf"x/huge.py: expected at most {MEMBER_LIMIT} bytes"):
        task_of(monkeypatch, tmp_path, x={"x/huge.py": "#" * (MEMBER_LIMIT + 1)})


def test_another_digest_and_a_changed_archive_are_refused(tmp_path, monkeypatch):
    archive = packed(tmp_path, "x", wordy("x", 12))
    monkeypatch.setattr(sentences, "PACKAGES", (archive, packed(tmp_path, "y", wordy("y", 12))))
    with pytest.raises(ValueError, match="docstrings: expected the examples with SHA-256 "):
        sentences.docstrings(tmp_path)
    packed(tmp_path, "x", wordy("z", 12))
    with pytest.raises(ValueError, match=rf"x-1.0\S* expected SHA-256 {archive.sha256}, got"):
        sentences.docstrings(tmp_path, or_installed=True)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its index, and nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def test_an_archive_is_fetched_once_into_the_folder(tmp_path, index):
    archive = packed(index, "x", wordy("x", 2))
    data = archive.read(tmp_path / "cache" / "here")
    next(index.iterdir()).unlink()
    assert archive.read(tmp_path / "cache" / "here") == data
    assert len(list((tmp_path / "cache" / "here").iterdir())) == 1


def test_an_archive_that_does_not_come_is_told_and_leaves_nothing(tmp_path, index, monkeypatch):
    folder = tmp_path / "cache"
    archive = packed(index, "x", wordy("x", 2))
    packed(index, "x", wordy("z", 2))  # pip itself finds that the hash is another
    command = "pip download --no-deps --ignore-requires-python --only-binary x x==1.0 -d"
    with pytest.raises(NotFetchedError, match=f"not fetched .*HASHES.*{command} {folder}"):
        archive.read(folder)
    next(index.iterdir()).unlink()
    with pytest.raises(NotFetchedError, match=f"x-1.0-.*not fetched .ERROR.*{command}"):
        archive.read(folder)
    assert list(folder.iterdir()) == []
    monkeypatch.setattr(sentences, "PACKAGES", (archive,))
    monkeypatch.setattr(sentences, "INSTALLED", ("pluggy", "packaging", "nosuchpackage"))
    task = sentences.docstrings(folder, or_installed=True)
    assert task.name == "installed docstrings" and task.classes == ("pluggy", "packaging")
    assert f"pluggy {metadata.version('pluggy')}" in task.source and len(everything(task)) > 50
    assert not set(task.train.groups) & set(task.test.groups)
    with pytest.raises(NotFetchedError):
        sentences.docstrings(folder)


def tarred(files):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def rated(monkeypatch, folder, inner):
    """The sentiment task of an sdist with these files in the archive within."""
    name = "r-1.0/additional_resources/hutto_ICWSM_2014.tar.gz"
    data = tarred({name: tarred({f"hutto_ICWSM_2014/{key}": t for key, t in inner.items()})})
    (folder / "r-1.0.tar.gz").write_bytes(data)
    archive = Archive("r", "1.0", "MIT", hashlib.sha256(data).hexdigest(), ".tar.gz")
    monkeypatch.setattr(sentences, "RATED", archive)
    monkeypatch.setattr(sentences, "_checked", lambda task: task)
    return sentences.sentiment(folder)


KINDS = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")


def test_ratings_become_labels_and_reviews_stay_together(tmp_path, monkeypatch):
    files = {f"{kind}_GroundTruth.txt": b"" for kind in KINDS}
    files["amazonReviewSnippets_GroundTruth.txt"] = (
        b"12_1\t0.55\tfish &amp;  chips were fine\r\n12_3\t-2.5\ttea came far too late\r\n"
        b"13_1\t0.5\tthis one is neither nor\r\n14_1\t3.0\ttoo short\r\n"
    )
    task = rated(monkeypatch, tmp_path, files)
    assert task.classes == ("negative", "positive")
    assert dict(zip(task.test.sentences, task.test.labels, strict=True)) == {
        "fish & chips were fine": 1,
        "tea came far too late": 0,
    }
    assert task.test.groups == ("amazonReviewSnippets/12",) * 2
    assert everything(task) == list(task.test.sentences)


def test_a_tar_archive_is_bounded(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=f"zeros: expected at most {MEMBER_LIMIT} bytes, got"):
        rated(monkeypatch, tmp_path, {"zeros": bytes(MEMBER_LIMIT + 1)})
    with pytest.raises(ValueError, match="movieReviewSnippets_GroundTruth.txt: expected it in"):
        rated(monkeypatch, tmp_path, {"tweets_GroundTruth.txt": b""})
