"""The documentation: the site builds without a warning, links lead somewhere, and commands are what they were."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import soft_mpcritic
from soft_mpcritic.cli.parsing import parse
from soft_mpcritic.config import ConfigError

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/*.md")]
)


def test_the_site_builds_and_shows_all_that_is_public(tmp_path):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    shown = set(re.findall(r'id="(soft_mpcritic\.[\w.]+)"', (tmp_path / "site" / "api" / "index.html").read_text()))
    public = [getattr(soft_mpcritic, name) for name in soft_mpcritic.__all__]
    assert {f"{thing.__module__}.{thing.__qualname__}" for thing in public} <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def commands() -> list[str]:
    """Every command line that a page shows in a block of its own."""
    blocks = [block for page in PAGES for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({line.partition("  #")[0].strip() for line in lines if line.startswith("soft-mpcritic ")})


@pytest.mark.parametrize("line", commands())
def test_commands_that_pages_show_are_understood(line, tmp_path, monkeypatch):
    """Run folders that a page names do not exist here: only this may be complained about."""
    monkeypatch.chdir(tmp_path)
    arguments = ["1" if word == "S" else word for word in shlex.split(line)[1:]]  # S stands for a seed
    try:
        parse(arguments)
    except ConfigError as error:
        assert "is not a run folder" in str(error) or "no config.json" in str(error), str(error)
