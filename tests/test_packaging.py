"""Container, conda environment, release workflow and citation say what the package says."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from lite3r_jax import __version__
from lite3r_jax.cli.lite3r import COMMANDS, settings_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
ENVIRONMENT = (ROOT / "environment.yml").read_text()
PYTHONS = {line.rpartition(" :: ")[2] for line in PROJECT["classifiers"] if ":: 3." in line}


def extras(text: str) -> set[str]:
    return set(text.split(","))


def test_extras_that_are_installed_are_there():
    known = set(PROJECT["optional-dependencies"])
    lists = [*re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE), *re.findall(r"\[([\w,]+)\]", ENVIRONMENT)]
    assert len(lists) == 4
    for text in lists:
        assert extras(text) <= known, text


def test_their_pythons_are_tested_ones():
    conda = [part for part in yaml.safe_load(ENVIRONMENT)["dependencies"] if "python" in part]
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert conda == ["python=3.12"] and "3.12" in PYTHONS
    assert re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE, re.MULTILINE) == ["3.12"]
    assert set(workflow["jobs"]["install"]["strategy"]["matrix"]["python"]) == PYTHONS


def test_the_image_holds_what_the_build_needs_and_little_else():
    kept = set(re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert {name for line in copied for name in line.split()} == kept
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.parametrize("text", [DOCKERFILE, (ROOT / ".github/workflows/release.yml").read_text()])
def test_commands_have_the_options_that_they_name(text):
    commands = re.findall(r"lite3r(?::cuda)? (reconstruct .+)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        name, *words = shlex.split(command)
        assert name in COMMANDS and settings_of(name, words) is not None


def test_the_citation_is_of_this_version_and_license():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])
    arxiv = {entry["url"].rpartition("/")[2] for entry in citation["references"]}
    readme = (ROOT / "README.md").read_text() + (ROOT / "docs" / "glossary.md").read_text()
    assert "2605.11354" in arxiv and arxiv <= set(re.findall(r"\d{4}\.\d{5}", readme + RECIPES))


RECIPES = "".join(path.read_text() for path in (ROOT / "lite3r_jax" / "recipes").glob("*.py"))


def test_forms_of_issues_are_whole():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert form["name"] and form["description"], path
            ids = [part["id"] for part in form["body"]]
            assert len(ids) == len(set(ids)) and all(p["attributes"]["label"] for p in form["body"])
