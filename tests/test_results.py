"""Every figure on the README and on the pages of lessons/results is that of a file."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="needs SciPy: pip install .[lessons]")
import claims
import components  # noqa: F401  registers its blocks, and those of `slopes`
import minilm  # noqa: F401
import pages

ROOT = Path(__file__).parent.parent
DATA = [
    path
    for folder in (pages.RESULTS, "tests/benchmarks")
    for path in sorted((ROOT / folder).glob("*.json*"))
]
MARKED = re.compile(r"<!-- block: (\w+) -->\n.*?<!-- end -->", re.S)
OF_BLOCKS = sorted({page for page, _ in pages.BLOCKS.values()})
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / pages.RESULTS).glob("*.md"))]
}


@pytest.mark.parametrize("name", pages.BLOCKS)
def test_a_block_stands_on_its_page_as_its_file_has_it(name):
    page, make = pages.BLOCKS[name]
    assert pages.wrapped(name, make()) in PAGES[page], "python tests/pages.py writes it anew"


def test_every_block_on_a_page_is_made_from_a_file():
    marked = {name: page for page, text in PAGES.items() for name in MARKED.findall(text)}
    assert marked == {name: page for name, (page, _) in pages.BLOCKS.items()}


@pytest.mark.parametrize("page", OF_BLOCKS)
def test_no_figure_is_typed_beside_the_blocks(page):
    """A decimal outside blocks, code and links is a version of Python or a section's number."""
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", MARKED.sub("", PAGES[page]), flags=re.S)
    decimals = set(re.findall(r"[+−-]?\d+\.\d+(?:e-?\d+)?|\d+(?:\.\d+)? %", prose))
    assert decimals <= {"3.11", "4.3", "95 %"}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page])
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_a_changed_file_changes_the_page(monkeypatch):
    """Each block follows its files: with every number in them changed, no block stays."""

    def changed(value):
        if isinstance(value, dict):
            return {key: changed(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [changed(inner) for inner in value]
        if value in ("pass", "fail"):
            return {"pass": "fail", "fail": "pass"}[value]
        return value if isinstance(value, bool | str | None) else value * 3 + 1

    before = {name: make() for name, (_, make) in pages.BLOCKS.items()}
    printed = re.sub(r": 50:", ": 60:", pages.text_of(f"{pages.RESULTS}/stress.txt"))
    files = {path.relative_to(ROOT).as_posix(): changed(pages.file(str(path))) for path in DATA}
    monkeypatch.setattr(pages, "file", files.get)
    monkeypatch.setattr(pages, "text_of", lambda path: printed)
    assert [name for name, (_, make) in pages.BLOCKS.items() if make() == before[name]] == []


@pytest.mark.parametrize(
    ("sides", "claimed", "expected"),
    [
        ([(0.1, 0.3), (0.2, 0.4)], 1, "reproduces"),
        ([(0.1, 0.3), (-0.2, 0.4)], 1, "in part"),
        ([(0.1, 0.3), (-0.4, -0.2)], 1, "in part"),
        ([(-0.1, 0.3), (-0.4, -0.2)], 1, "does not"),
        ([(-0.1, 0.3), (-0.4, 0.2)], 1, "not resolved"),
        ([(-0.3, -0.1)], -1, "reproduces"),
        ([(0.1, 0.3)], -1, "does not"),
    ],
)
def test_verdicts_follow_from_the_intervals(sides, claimed, expected):
    intervals = [((low + high) / 2, low, high) for low, high in sides]
    assert claims.verdict(intervals, claimed) == expected
    ratios = [tuple(1 + number for number in interval) for interval in intervals]
    assert claims.verdict(ratios, claimed, none=1.0) == expected


def test_a_familys_intervals_are_corrected():
    mean, low, high = claims.within_seeds([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], 1)
    assert mean == 2 and high - mean == mean - low == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    _, _, wider = claims.within_seeds([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], 5)  # t at 0.995
    assert wider - mean == pytest.approx(9.92484 / 3**0.5, rel=1e-5)


def test_a_null_without_a_bound_is_not_resolved():
    (row,) = [row for row in claims.claims().splitlines() if "section 4.3: detached" in row]
    assert row.endswith("| not resolved |")


def test_the_matrix_is_of_the_kits_clauses():
    from minidora.kit.clauses import CLAUSES

    judged = pages.file(f"{pages.RESULTS}/conformance.json")["rows"][0]["clauses"]
    page = PAGES[f"{pages.RESULTS}/conformance.md"].splitlines()
    rows = [re.match(r"\| ([A-Z]\d) (.*?) \|", line) for line in page]
    assert [m.groups() for m in rows if m] == [(c, CLAUSES[c].text) for c in CLAUSES if c in judged]
    assert all(c in judged for c, clause in CLAUSES.items() if clause.level != "may")


def test_the_readme_is_short_and_has_ten_results_with_their_pages():
    assert (ROOT / "README.md").stat().st_size <= 10_240
    rows = pages.headlines().splitlines()[2:]
    assert len(rows) == 10
    assert all(re.search(r"\]\(lessons/results/\w+\.md\) \|$", row) for row in rows)


def test_rows_of_zeros_that_were_a_broken_download_are_not_cited():
    """The 511 of Llama 3.1 that PEFT's issue 2049 reports; its pull request 3237 says so."""
    kinds = ("*.md", "*.py", "*.ipynb")
    texts = [
        path
        for folder in ("lessons", "minidora")
        for kind in kinds
        for path in (ROOT / folder).rglob(kind)
    ]
    cited = re.compile(r"\b511\b[^|]{0,80}Llama|Llama[^|]{0,80}\b511\b")
    assert [p.name for p in texts if cited.search(p.read_text(encoding="utf-8"))] == []


def test_what_no_command_writes_is_recorded_with_its_command():
    recorded = json.loads((ROOT / pages.RESULTS / "recorded.json").read_text(encoding="utf-8"))
    for name, entry in recorded.items():
        assert name == "what" or {"date", "command"} < set(entry), name
