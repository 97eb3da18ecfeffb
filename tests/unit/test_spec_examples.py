"""Files that are shipped for people to start from still load."""

import re
from pathlib import Path

import pytest
import yaml

from orchestrator.search.load import load_search
from orchestrator.search.plan import check_search
from orchestrator.spec import JobSpec, load_jobs
from orchestrator.study.load import load_study

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs/examples").glob("*.yaml"))
STUDIES = sorted((ROOT / "docs/examples/studies").glob("*.yaml"))
CLUSTERS = sorted((ROOT / "clusters").rglob("*.yaml"))


def loaded(path: Path) -> list[JobSpec]:
    """The jobs of a file; of a search those at the corners of its space."""
    if "search" in yaml.safe_load(path.read_text(encoding="utf-8")):
        return check_search(load_search(path))
    return load_jobs(path)


def test_there_are_examples_and_clusters() -> None:
    assert EXAMPLES
    assert STUDIES
    assert CLUSTERS


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_job_file(path: Path) -> None:
    assert loaded(path)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_example_of_a_study_is_a_study_file(path: Path) -> None:
    assert load_study(path)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_every_cluster_file_is_yaml_with_a_cluster_name(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["cluster_name"]


def job_blocks() -> list[tuple[str, str]]:
    """(where, text) of each YAML block of the pages that is a whole job file, abridged nowhere."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        (f"{page.name}-{index}", block)
        for page in pages
        for index, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S))
        if block.startswith(("name:", "jobs:")) and "..." not in block
    ]


def test_the_pages_show_whole_jobs() -> None:
    assert len(job_blocks()) >= 2


@pytest.mark.parametrize(("where", "block"), job_blocks(), ids=lambda value: value[:20])
def test_every_job_shown_on_a_page_is_a_job_file(where: str, block: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(block)
    assert loaded(tmp_path / "job.yaml"), where
