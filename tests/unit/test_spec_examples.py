"""Files that are shipped for people to start from still load."""

from pathlib import Path

import pytest
import yaml

from orchestrator.spec import load_jobs

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs/examples").rglob("*.yaml"))
CLUSTERS = sorted((ROOT / "clusters").rglob("*.yaml"))


def test_there_are_examples_and_clusters() -> None:
    assert EXAMPLES
    assert CLUSTERS


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_job_file(path: Path) -> None:
    assert load_jobs(path)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_every_cluster_file_is_yaml_with_a_cluster_name(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["cluster_name"]
