"""Image folders as a source."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.data import prepare
from orchestrator.data.images import documents
from orchestrator.errors import SpecError
from orchestrator.spec.data import DataSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures in two classes, one of them a folder deeper, and files that are none."""
    draw = np.random.default_rng(0)
    for kind, count in (("cat", 3), ("dog", 2)):
        (tmp_path / kind / "more").mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(256, size=(4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")
    Image.new("L", (8, 2), 255).save(tmp_path / "dog" / "more" / "white.JPG")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "readme.png").write_text("beside the classes")
    return tmp_path


def test_images_come_channel_by_channel_with_the_name_of_their_class(folder: Path) -> None:
    found = dict(documents(str(folder), size=4))
    assert set(found) == {"cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png",
                          "dog/more/white.JPG"}  # fmt: skip
    assert all(record["label"] == name.split("/")[0] for name, record in found.items())
    pixels = np.asarray(Image.open(folder / "cat/1.png"))
    wanted = pixels.transpose(2, 0, 1).ravel() / 255
    np.testing.assert_allclose(found["cat/1.png"]["features"], wanted)
    assert found["dog/more/white.JPG"]["features"] == [1.0] * 48
    grey = dict(documents(str(folder), size=2, channels=1))
    assert {len(record["features"]) for record in grey.values()} == {4}


def test_the_order_is_that_of_the_names_wherever_the_folder_lies(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "again"
    folder.rename(other)
    every = list(documents(str(other), size=4))
    other.rename(folder)
    assert list(documents(str(folder), size=4)) == every
    assert list(documents(str(folder), size=4, limit=2)) == every[:2]


def test_a_job_reads_them(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = {
        "kind": "import",
        "target": "orchestrator.data.images:documents",
        "arguments": {"folder": str(folder), "size": 4},
        "format": {"kind": "features", "shape": [3, 4, 4], "classes": ["cat", "dog"]},
    }
    data = DataSpec.model_validate({"sources": [source], "held_out": 0.0})
    train = prepare(data, None, str(tmp_path_factory.mktemp("data"))).train
    assert len(train) == 6
    assert sorted(int(train.label(i)) for i in range(6)) == [0, 0, 0, 1, 1, 1]


def test_what_is_no_image_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere: is no folder"):
        next(documents(str(folder / "nowhere"), size=4))
    with pytest.raises(SpecError, match="holds no folder with images"):
        next(documents(str(folder / "cat"), size=4))
    with pytest.raises(SpecError, match="channels 2"):
        next(documents(str(folder), size=4, channels=2))
    whole = (folder / "dog/1.png").read_bytes()
    (folder / "dog/1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SpecError, match=r"dog/1\.png: is no whole image"):
        list(documents(str(folder), size=4))
