"""The pages that GitHub shows: the first is short, links lead somewhere, tests they name exist, commands are ours."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from distbranch.cli import app

ROOT = Path(__file__).resolve().parents[1]
# Ours, and not those of packages in an environment that lies beside them, as README has it.
PLACES = (
    "*.md",
    *(f"{name}/**/*.md" for name in (".github", "cluster", "configs", "distbranch", "tests")),
)
PAGES = [
    page for place in PLACES for page in sorted(ROOT.glob(place)) if "CHANGELOG" not in page.name
]
README = (ROOT / "README.md").read_text()


def sentences_of(page: str) -> list[str]:
    """Its prose without code, tables, headings and addresses of links."""
    prose = re.sub(r"```.*?```", "", page, flags=re.S)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    lines = [line for line in prose.splitlines() if not line.startswith(("|", "#"))]
    return re.split(r"(?<=[.:])\s", "\n".join(lines))


def commands_of(page: Path) -> list[list[str]]:
    """What a reader would type after `distbranch`, in blocks and between backticks."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    found = []
    for line in lines:
        command = re.search(r"(?:^|&& )(distbranch (?:[a-z].*))", line.strip())
        if command is None:
            continue
        words = shlex.split(command.group(1), comments=True)[1:]
        # After the dashes stands the command that a job runs, with options of its own.
        if "--" in words:
            dashes = words.index("--")
            found.append(words[dashes + 1 :])
            words = words[:dashes]
        found.append(words)
    return found


def test_the_first_page_is_read_in_two_minutes() -> None:
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1100
    assert ";" not in README
    assert not [sentence for sentence in sentences_of(README) if len(sentence.split()) > 25]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_every_test_it_names_exists(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert not [
        name for name in re.findall(r"`(test_[a-z0-9_]+)`", text) if f"def {name}(" not in tests
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one_of_ours_with_its_options(page: Path) -> None:
    for words in commands_of(page):
        command, path = typer.main.get_command(app), []
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words[0]]  # type: ignore[attr-defined]
            path.append(words.pop(0))
        alternatives = "|" in words[0] if words and not path else False
        assert path or alternatives, f"distbranch {shlex.join(words)}"
        shown = CliRunner().invoke(app, [*path, "--help"])
        assert shown.exit_code == 0, shown.output
        if command.context_settings.get("ignore_unknown_options"):  # those of a source
            continue
        known = {option for parameter in command.params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known | {"--help"}, (
            f"distbranch {shlex.join([*path, *words])}: {sorted(given - known)}"
        )
