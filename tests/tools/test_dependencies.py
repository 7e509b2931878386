"""Versions that were tested together, and licenses that bind no user."""

import sys
import tomllib
from email.message import Message

import pytest
from packaging.utils import canonicalize_name

from tools import dependencies
from tools.dependencies import CONSTRAINTS, EXTRAS, constraints, licenses, main, runtime

where_pinned = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="what is installed is not constraints.txt"
)


@where_pinned
def test_every_license_of_what_runs_is_stated_and_none_is_copyleft(capsys):
    every = list(licenses())
    assert not [each for each in every if each[2]]
    assert len(every) > 40 and main(["licenses"]) == 0
    assert "0 that are not allowed" in capsys.readouterr().out


@where_pinned
def test_the_constraints_are_what_is_installed_and_tested():
    assert CONSTRAINTS.read_text() == constraints()


@where_pinned
def test_the_constraints_have_every_dependency_of_users():
    pinned = {line.partition("==")[0] for line in CONSTRAINTS.read_text().splitlines()[2:]}
    assert runtime().keys() <= pinned
    project = tomllib.loads((CONSTRAINTS.parent / "pyproject.toml").read_text())["project"]
    others = {
        "cuda12",
        "cuda13",
        "tpu",
        "triton",
        "torch",
        "demo",
        "docs",
        "notebooks",
        "test",
        "dev",
    }
    assert set(project["optional-dependencies"]) == others | set(EXTRAS)
    direct = [text for name in EXTRAS for text in project["optional-dependencies"][name]]
    for text in [*project["dependencies"], *direct]:
        name = canonicalize_name(text.split(">")[0].split("<")[0])
        assert name in pinned


class _Distribution:
    version = "1"

    def __init__(self, **fields):
        self.metadata = Message()
        self.metadata["Name"] = "x"
        for name, value in fields.items():
            self.metadata[name.replace("_", "-")] = value


@pytest.mark.parametrize(
    "fields,wrong",
    [
        ({"License_Expression": "Apache-2.0"}, ""),
        ({"License_Expression": "GPL-3.0-or-later"}, "is not allowed here"),
        ({"License_Expression": "AGPL-3.0-only"}, "is not allowed here"),
        ({"License": "GNU General Public License v2"}, "is not allowed here"),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"},
         "is not allowed here"),
        ({"Classifier": "License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)"},
         ""),
        ({"Classifier": "License :: OSI Approved", "License": "MIT"}, ""),
        ({}, "states no license"),
    ],
)  # fmt: skip
def test_copyleft_and_silence_are_noticed(monkeypatch, fields, wrong):
    monkeypatch.setattr(dependencies, "runtime", lambda: {"x": _Distribution(**fields)})
    ((_, _, fault),) = licenses()
    assert fault == wrong
