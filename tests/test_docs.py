"""What the documents name exists: files, functions, links, commands and their options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from engine_build.command import COMMANDS, load

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("*.md"),
        *ROOT.glob("*/README.md"),
        ROOT / "tests/cuda_emulator/README.md",
    ]
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
PREFIXES = ("engine_build/", "calibration/", "infer/", "tests/", "benchmarks/", "examples/", "docs/")


def fences(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_exist(page):
    named = re.findall(rf"`((?:{'|'.join(PREFIXES)})[\w./*-]+)`", page.read_text())
    assert [name for name in named if not any(ROOT.glob(name.rstrip("/")))] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\((?!https?:)([^)#][^)]*)\)", text)]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_functions_of_the_journeys_are_where_they_are_said_to_be():
    text = " ".join((ROOT / "docs/journeys.md").read_text().split())
    pairs = re.findall(r"`([\w/]+\.py)` `(\w+)`", text)
    assert len(pairs) > 25
    wrong = [
        (path, name)
        for path, name in pairs
        if not re.search(rf"^\s*(?:def|class) {name}\b|^{name} = ", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert wrong == []


def commands(text: str) -> list[list[str]]:
    """Calls of ours in code: fenced, indented or in backquotes; continued lines are joined."""
    blocks = [*fences(text), *re.findall(r"^    (.+(?:\n    .+)*)", text, re.MULTILINE)]
    lines = [line for block in blocks for line in re.sub(r"\\?\n\s+", " ", block).splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    found = []
    for line in lines:
        match = re.search(r"(?:^|\s|/)iresnet ([a-z].*)", line.partition(" #")[0])
        if match:
            found.append(re.split(r"[\s\[\]|;]+", match.group(1).replace("`", " ")))
    return found


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_and_their_options_exist(page):
    wrong = []
    for name, *words in commands(page.read_text()):
        if name not in COMMANDS:
            wrong.append(name)
            continue
        command = load(name, COMMANDS[name])
        if COMMANDS[name].group and words and words[0] in command.commands:
            command = command.commands[words[0]]
        known = options(command) if hasattr(command, "params") else set()
        wrong += [f"{name} {word}" for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    assert [word for word in wrong if not word.endswith("--help")] == []


def test_the_commands_are_documented():
    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"`{name}`" not in text and f"iresnet {name}" not in text] == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for block in [*fences(page.read_text()), *re.findall(r"`(make [^`\n]+)`", page.read_text())]:
            for line in block.splitlines():
                if line.startswith("make ") and (words := shlex.split(line, comments=True)[1:]):
                    assert words[0] in targets or "=" in words[0], f"{page.name}: {line}"


def test_typer_agrees_with_what_is_read_here():
    assert "--max-batch" in options(load("build", COMMANDS["build"]))
    assert "--no-tf32" in options(load("build", COMMANDS["build"]))
    assert isinstance(load("cache", COMMANDS["cache"]), type(typer.main.get_group(typer.Typer(callback=lambda: None))))
