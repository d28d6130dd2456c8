"""What a release is made of: version, citation, changelog, dependencies, workflows."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = [path for path in sorted((ROOT / ".ci").iterdir()) if path.suffix in ("", ".py")]
CATEGORIES = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def load_yaml(path: Path) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True)


def version_of(folder: Path) -> str:
    """The version that a build in this folder would have."""
    command = [sys.executable, "-W", "ignore", "-m", "setuptools_scm"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    pytest.importorskip("setuptools_scm")
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("pyproject.toml", ".git_archival.txt", ".gitattributes"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def test_the_version_is_the_tag(sources: Path, tmp_path: Path) -> None:
    git(sources, "init")
    git(sources, "add", ".")
    git(sources, "commit", "-m", "first")
    assert re.fullmatch(r"0\.(0\.)?1\.dev1\+g[0-9a-f]+", version_of(sources))
    git(sources, "tag", "v1.2.3")
    assert version_of(sources) == "1.2.3"
    git(sources, "archive", "--output", str(tmp_path / "archive.tar"), "HEAD")
    with tarfile.open(tmp_path / "archive.tar") as archive:
        archive.extractall(tmp_path / "archive", filter="data")
    assert version_of(tmp_path / "archive") == "1.2.3"
    (sources / "more").touch()
    git(sources, "add", ".")
    git(sources, "commit", "-m", "second")
    assert re.fullmatch(r"1\.2\.4\.dev1\+g[0-9a-f]+", version_of(sources))


def test_copies_without_git_have_a_version(sources: Path) -> None:
    """Such as the one in which .ci/run tests; a source distribution has that of its PKG-INFO."""
    assert version_of(sources) == "0.0.0"
    (sources / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: fec-fast\nVersion: 4.5.6\n")
    assert version_of(sources) == "4.5.6"


def test_the_citation() -> None:
    citation = load_yaml(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "type", "authors"} <= set(citation)
    assert [author["name"] for author in citation["authors"]] == [who["name"] for who in PROJECT["project"]["authors"]]
    assert citation["license"] == PROJECT["project"]["license"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Geng", "Niu"] and paper["year"] == 2024
    assert PROJECT["project"]["urls"]["Paper"].endswith(paper["doi"])
    assert paper["title"] in " ".join((ROOT / "docs" / "formula.md").read_text(encoding="utf-8").split())


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    dates = []
    for version in versions[1:]:
        found = re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d)", version)
        assert found, version
        dates.append(found[1])
    assert dates == sorted(dates, reverse=True)
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert kinds and set(kinds) <= set(CATEGORIES) and len(kinds) == len(set(kinds)), section.splitlines()[0]


def test_the_notes_of_a_release_come_from_the_changelog(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "changelog.py"
    script.write_bytes((ROOT / ".ci" / "changelog.py").read_bytes())
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-02\n\n### Added\n\n- this\n\n"
        "## [1.2.2] - 2026-01-01\n\n- that\n"
    )
    run = [sys.executable, str(script)]
    assert subprocess.run([*run, "1.2.3"], capture_output=True, text=True).stdout == "### Added\n\n- this\n"
    done = subprocess.run([*run, "1.2.4"], capture_output=True, text=True)
    assert done.returncode != 0 and "no section '## [1.2.4]" in done.stderr


def lower_bounds() -> dict[str, set[str]]:
    """Of every dependency, the bounds that pyproject.toml gives it."""
    bounds: dict[str, set[str]] = {}
    extras = PROJECT["project"]["optional-dependencies"].values()
    for text in [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *sum(extras, [])]:
        requirement = Requirement(text)
        # Beside the bound, releases that must not be installed.
        (bound,) = (each for each in requirement.specifier if each.operator != "!=")
        assert bound.operator == ">=", text
        bounds.setdefault(canonicalize_name(requirement.name), set()).add(bound.version)
    return bounds


def test_the_oldest_dependencies_are_the_bounds() -> None:
    pinned = {}
    for line in (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            pinned[canonicalize_name(requirement.name)] = requirement.specifier
    bounds = lower_bounds()
    assert set(pinned) == set(bounds)
    for name, versions in bounds.items():
        assert len(versions) == 1, f"{name} has several bounds: {versions}"
        (version,) = versions
        assert str(pinned[name]).startswith("==") and pinned[name].contains(version), name


def test_the_bounds_that_leave_out_known_holes_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split("## Dependencies")[1].split("\n## ")[0]
    stated = {Requirement(text) for text in re.findall(r"`([a-z]+[><=!0-9.,]+[0-9])`", page) if ">=" in text}
    extras = PROJECT["project"]["optional-dependencies"]
    declared = list(map(Requirement, [*PROJECT["project"]["dependencies"], *sum(extras.values(), [])]))
    assert {each.name for each in stated} >= {"pillow", "transformers", "onnxruntime", "lightning", "torch"}
    for requirement in stated:
        found = [each.specifier for each in declared if each.name == requirement.name]
        assert found and set(found) == {requirement.specifier}, requirement


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_pinned_and_have_few_rights(path: Path) -> None:
    content = load_yaml(path)
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        if re.match(r"\s*(- )?uses:", line):  # a commit, and its version for the reader
            assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d", line), line
    assert "pull_request_target" not in text and "secrets." not in text
    assert content["permissions"] in ({}, {"contents": "read"})
    for name, job in content["jobs"].items():
        assert job["timeout-minutes"] <= 120
        rights = job.get("permissions", {})
        assert set(rights) <= {"contents", "id-token"} and (not rights or path.name == "release.yml"), name
        assert ("id-token" in rights) == (name == "publish")
        for step in job["steps"]:  # text of strangers, such as a title, would be run as commands
            assert "${{" not in step["run"], step["run"]


def test_the_rule_for_workflows_refuses_tags(tmp_path: Path) -> None:
    wrong = tmp_path / "release.yml"
    for uses in ("actions/checkout@v4", "actions/checkout@main", f"actions/checkout@{'a' * 40}", "actions/checkout"):
        wrong.write_text(
            f"permissions: {{}}\njobs:\n  one:\n    timeout-minutes: 1\n    steps:\n      - uses: {uses}\n"
        )
        with pytest.raises(AssertionError, match="uses"):
            test_workflows_are_pinned_and_have_few_rights(wrong)


def test_programs_of_workflows_have_a_version() -> None:
    tools = (ROOT / ".ci" / "tools.txt").read_text(encoding="utf-8").splitlines()
    names = {line.split("==")[0] for line in tools if not line.startswith("#")}
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in tools if not line.startswith("#"))
    for path in [*WORKFLOWS, *SCRIPTS]:
        for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            command = re.search(r"pip\"? install (.*?)(?:&&|$)", line.strip())
            if command is None or line.strip().startswith("#"):
                continue
            words = [word for word in re.split(r"[\s\"']+", command[1]) if re.fullmatch(r"[a-z][\w-]*", word)]
            if set(words) & names:
                assert "tools.txt" in command[1], line


def test_the_matrix_has_every_version_of_python_that_is_claimed() -> None:
    claimed = [
        found[1]
        for line in PROJECT["project"]["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    ]
    jobs = load_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    assert jobs["ci"]["strategy"]["matrix"]["python-version"] == claimed
    assert PROJECT["project"]["requires-python"] == f">={claimed[0]}" == f">={jobs['oldest']['env']['PYTHON_VERSION']}"
    built = PROJECT["tool"]["cibuildwheel"]["build"]
    assert built == [f"cp{version.replace('.', '')}-*" for version in claimed]


def test_templates_ask_something() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(templates) == 4
    for path in templates:
        content = load_yaml(path)
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(content)
            ids = [part["id"] for part in content["body"]]
            assert len(ids) == len(set(ids)) and all(part["attributes"]["label"] for part in content["body"])
