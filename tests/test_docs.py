"""The documentation: every page is in the navigation, every name of the API pages is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_page_is_in_the_navigation_once():
    navigation = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert sorted(navigation) == sorted(pages)


def names(module: Path) -> set[str]:
    """What stands at the top of a module."""
    tree = ast.parse(module.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_every_name_of_the_api_pages_exists():
    wanted = [
        name
        for page in DOCS.glob("api/*.md")
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
    ]
    assert len(wanted) > 50 and len(set(wanted)) == len(wanted)
    for name in wanted:
        path = ROOT.joinpath(*name.split("."))
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            continue
        assert path.name in names(path.parent.with_suffix(".py")), name


def test_every_seam_has_an_example_with_its_commit():
    table = (DOCS / "architecture.md").read_text().partition("## How to add")[2]
    seams = re.findall(r"(?m)^\| (?!part|-).*$", table.partition("## Contracts")[0])
    assert len(seams) == 5
    for seam in seams:
        assert re.search(r"commit [0-9a-f]{7}\b", seam), seam
