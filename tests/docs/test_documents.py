"""Every command that a document shows parses, and every page that it links exists."""

import re
import shlex
from pathlib import Path

import pytest

from vidbrain.cli.app import build

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "shards").glob("*.md")])
# As written in a block, or set in backticks.
SHOWN = re.compile(r"^\s*(vidbrain .+?)\s*(?:#.*)?$|`(vidbrain [^`]+)`", flags=re.MULTILINE)


def commands(page):
    found = [a or b for a, b in SHOWN.findall(page.read_text())]
    # `vidbrain play` and `replay`, `vidbrain bold simulate`: names in running text take no arguments.
    return [c for c in found if len(c.split()) > 2 and not re.fullmatch(r"vidbrain (bold|train) \w+|vidbrain \w+", c)]


def test_there_are_documents():
    assert len(PAGES) > 8
    assert sum(len(commands(page)) for page in PAGES) > 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page):
    for command in commands(page):
        words = shlex.split(command)
        if "--config" in words:
            # Taken by the launcher, before the command is parsed.
            position = words.index("--config")
            assert (ROOT / words[position + 1]).is_file(), command
            del words[position : position + 2]
        function, _, ignored = build().parse_args(words[1:], exit_on_error=False, print_error=False)
        assert callable(function), command
        assert not ignored, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_tree_in_the_readme_is_the_tree():
    shown = re.search(r"```\n(vidbrain/.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    folders = {line.split()[0].strip("/") for line in shown.splitlines() if re.match(r"  \w+/ ", line)}
    real = {p.name for p in (ROOT / "vidbrain").iterdir() if (p / "__init__.py").is_file()}
    assert folders == real
