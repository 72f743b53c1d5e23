"""What makes the packages usable by others: types, citation, licence."""

import json
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("package", ["airllm", "channel", "edge", "cloud"])
def test_the_libraries_say_that_they_are_typed(package):
    assert package in PROJECT["tool"]["mypy"]["packages"]
    assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][package]


def test_what_is_read_at_run_time_is_packed():
    packed = {
        file
        for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package).glob(pattern)
    }
    suffixes = {".toml", ".j2", ".safetensors"}
    packages = ("airllm", "channel", "edge", "cloud", "experiments")
    read = {file for name in packages for file in (ROOT / name).rglob("*")
            if file.suffix in suffixes and "notebooks" not in file.parts}  # fmt: skip
    assert read - packed == set()


def test_the_citation_file_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["authors"]
    assert citation["message"]


def _package(name, **more):
    return {"name": name, "version": "1.0", "vulns": []} | more


FLAW = {"id": "CVE-2026-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}


@pytest.mark.parametrize(
    ("packages", "said", "code"),
    [
        ([_package("a"), _package("b")], "audit: 0 known vulnerabilities in 2 of 2 packages", 0),
        ([_package("a", vulns=[FLAW])], "a 1.0: CVE-2026-1, mended in 1.1", 1),
        ([_package("a"), {"name": "b", "skip_reason": "not found"}], "in 1 of 2 packages", 0),
        ([{"name": "a", "skip_reason": "not found"}], "the index knows none of the 1 pinned", 0),
        (None, "no database of vulnerabilities is within reach", 0),
    ],
)
def test_the_audit_fails_on_a_flaw_and_says_what_it_could_not_ask(packages, said, code):
    verdict = runpy.run_path(str(ROOT / ".ci" / "audit.py"))["verdict"]
    output = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    text, exit_code = verdict(output)
    assert said in text
    assert exit_code == code
