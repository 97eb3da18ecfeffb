"""The source of an image folder: one sub-folder a class, as data sets of images are handed round.

    photos/cat/0001.png    photos/cat/sub/0002.jpg    photos/dog/7.png

Promises: the same records in the same order wherever the folder lies. Imports Pillow when called.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB"}
BRIGHTEST = 255.0


def documents(
    folder: str, size: int, channels: int = 3, limit: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path inside the folder, {"features": numbers, "label": the class's name}).

    The numbers are channels * size * size from 0 to 1, channel by channel and row by row: write
    `format: {kind: features, shape: [channels, size, size], classes: [...]}`. Images are scaled to
    size by size (bicubic, whatever their proportions) and made grey or RGB.

    Args:
        folder: holds a folder for each class, named as the class.
        size: height and width that the model is given.
        channels: 1, grey; or 3, RGB.
        limit: images at most, a fair sample of all; None: all.

    Raises:
        SpecError: there is no such folder, no class or no image in it, or an image is damaged.
    """
    from PIL import Image

    if channels not in MODES or size < 1 or (limit is not None and limit < 1):
        raise SpecError(
            "arguments",
            f"are size {size}, channels {channels} and limit {limit}",
            "Give 1 or 3 channels, and size and limit above 0",
        )
    for file in _files(Path(folder))[:limit]:
        try:
            with Image.open(file) as image:
                scaled = image.convert(MODES[channels]).resize((size, size))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # a chunk of a PNG
            raise SpecError(str(file), f"is no whole image: {error}", "Remove it") from error
        values = scaled.tobytes()  # row by row, the channels of a pixel side by side
        features = [x / BRIGHTEST for channel in range(channels) for x in values[channel::channels]]
        name = file.relative_to(folder)
        yield name.as_posix(), {"features": features, "label": name.parts[0]}


def _files(folder: Path) -> list[Path]:
    """In an order that does not depend on the file system, the first ones a fair sample."""
    if not folder.is_dir():
        raise SpecError(str(folder), "is no folder", "Name the one with a folder for each class")
    found = [
        file
        for kind in folder.iterdir()
        if kind.is_dir()
        for file in kind.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]
    if not found:
        raise SpecError(
            str(folder),
            "holds no folder with images",
            f"Put images ({', '.join(SUFFIXES)}) into a folder for each class",
        )
    names = {file: file.relative_to(folder).as_posix() for file in found}
    return sorted(found, key=lambda file: hashlib.sha256(names[file].encode()).digest())
