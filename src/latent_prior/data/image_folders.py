"""Splits and classes of a folder of image files.

The `imagefolder` reader of `datasets` guesses splits from words anywhere in a path: for one
`img_test_3.png`, or a class called `test`, it silently drops all other images. Here only whole
folder names count.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_prior.data.listing import images_among

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


def image_splits(folder: Path, files: list[Path]) -> dict[str, Dataset]:
    """The splits of a folder of image files.

    If every sub-folder is named like a split (train, validation, test), it is one; otherwise all
    images are `train`. If all images lie in sub-folders of the same depth, these are the classes.
    """
    images = images_among(files)
    places = [path.relative_to(folder).parts for path in images]
    top = [SPLIT_NAMES.get(parts[0].lower()) if len(parts) > 1 else None for parts in places]
    names = ["train" if None in top else name for name in top]
    depths = {len(parts) - (None not in top) for parts in places}
    classes = (
        sorted({parts[-2] for parts in places}) if len(depths) == 1 and min(depths) > 1 else []
    )
    splits: dict[str, Dataset] = {}
    for split in dict.fromkeys(SPLIT_NAMES.values()):
        chosen = [path for path, name in zip(images, names, strict=True) if name == split]
        if chosen:
            splits[split] = _rows(chosen, classes)
    return splits


def _rows(images: list[Path], classes: list[str]) -> Dataset:
    from datasets import ClassLabel, Dataset, Features, Image

    features: dict[str, Any] = {"image": Image(decode=False)}
    columns: dict[str, Any] = {"image": [{"bytes": None, "path": str(path)} for path in images]}
    if len(classes) > 1:
        number = {name: place for place, name in enumerate(classes)}
        features["label"] = ClassLabel(names=classes)
        columns["label"] = [number[path.parent.name] for path in images]
    return Dataset.from_dict(columns, features=Features(features))
