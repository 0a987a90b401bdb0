"""The documentation's pages: each block of them is run by some test, and each link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.pages import NOT_RUN, PAGES, RUN_BY, list_blocks, name_page
from support.processes import ROOT

NAMES = [name_page(page) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_is_run(page: Path) -> None:
    """Each fenced block names its language, and the table says which test runs it, or why none does."""
    for block in list_blocks(page):
        assert (block.page, block.language) in RUN_BY, (
            f"{block.page}:{block.line}: no test is named for blocks in {block.language or 'no language'};"
            " see tests/support/pages.py"
        )


def test_the_table_is_true() -> None:
    """Each entry of the table is about blocks that exist, and names a test that exists or a reason."""
    existing = {(block.page, block.language) for page in PAGES for block in list_blocks(page)}
    assert set(RUN_BY) <= existing
    for by in RUN_BY.values():
        if by.startswith(NOT_RUN):
            assert len(by) > len(NOT_RUN) + 10
        else:
            path, _, name = by.partition("::")
            assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), by


def make_anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def strip_blocks(page: Path) -> str:
    """A page's text without its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def list_anchors(page: Path) -> set[str]:
    """The anchors of a page's headings; of two that are alike the second ends with -1."""
    anchors: list[str] = []
    for heading in re.findall(r"^#{1,6} (.*)$", strip_blocks(page), re.MULTILINE):
        anchor = make_anchor(heading)
        anchors.append(f"{anchor}-{anchors.count(anchor)}" if anchor in anchors else anchor)
    return set(anchors)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links(page: Path) -> None:
    """Each relative link leads to a file of the project, and its anchor to a heading there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", strip_blocks(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{name_page(page)} links to {target}"
        assert ROOT in aim.parents, f"{name_page(page)} links out of the project: {target}"
        if anchor:
            assert anchor in list_anchors(aim), f"{name_page(page)} links to {target}"


def test_the_index_has_every_page() -> None:
    """docs/README.md has a line for each page of docs/."""
    index = ROOT / "docs" / "README.md"
    linked = set(re.findall(r"^- \[[^]]*\]\(([^)#]+)\)", index.read_text(), re.MULTILINE))
    pages = {str(page.relative_to(index.parent)) for page in PAGES if index.parent in page.parents}
    assert linked == pages - {"README.md"} | {"../CONTRIBUTING.md"}
