"""The documents say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.cli.main import COMMANDS, build

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_generated_documents_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate_docs.py", "--check"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_readme_shows_only_commands_and_options_that_exist() -> None:
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^\$ edgeserve (.+?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        words = line.split()
        assert words[0] in COMMANDS, line
        help_text = _help_of(words)
        for option in [word for word in words if word.startswith("-")]:
            assert option in help_text, f"{option} of: edgeserve {line}"


def _help_of(words: list[str]) -> str:
    import typer

    command = typer.main.get_command(build(words[0])).commands[words[0]]
    for word in words[1:]:
        command = getattr(command, "commands", {}).get(word, command)
    return " ".join(option for parameter in command.params for option in parameter.opts)


def test_every_decision_has_a_status_and_a_date() -> None:
    for path in sorted((ROOT / "docs" / "adr").glob("*.md")):
        text = path.read_text()
        assert re.search(r"^- Status: \w+", text, re.MULTILINE), path.name
        assert re.search(r"^- Date: ", text, re.MULTILINE), path.name
