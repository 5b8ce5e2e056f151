"""Splits and classes of a folder of image files.

The `imagefolder` reader of `datasets` guesses splits from words anywhere in a path: for one
`img_test_3.png`, or a class called `test`, it silently drops all other images. Here only whole
folder names count; see `splits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_prior.data.captions import CAPTION_COLUMN
from latent_prior.data.labels import natural_order
from latent_prior.data.listing import LABELS_FILE, images_among
from latent_prior.data.metadata import LABEL_COLUMN, captioned_splits, describe_images
from latent_prior.data.splits import (
    FEWEST,
    SPLITS,
    held_out_remark,
    missing_parts,
    parts_of_names,
    split_places,
)
from latent_prior.options import ImageOptions

if TYPE_CHECKING:
    from datasets import Dataset


def image_splits(
    folder: Path, files: list[Path], options: ImageOptions
) -> tuple[dict[str, Dataset], list[str]]:
    """The splits of a folder of image files, and remarks on them, as ends of a sentence.

    Folders named like splits (train, validation, test; see `splits.split_named`) are splits;
    otherwise all images are `train`. Of many training images those of missing splits are held out
    (`splits.missing_parts`). If all images of a split lie in sub-folders of the same depth, these
    are their classes; images directly in a split have none. Captions, and classes that are no
    folders, come from metadata files (`metadata.describe_images`).

    Raises:
        ValueError: some images lie in folders named like splits, others do not, or metadata files
            do not fit the images.
    """
    images = images_among(files)
    if not images:
        return {}, []
    places = [path.relative_to(folder).parts[:-1] for path in images]
    names, depth = split_places(folder, places)
    if depth is not None:
        places = [(*parts[:depth], *parts[depth + 1 :]) for parts in places]
    depths = {split: {len(p) for p, s in zip(places, names, strict=True) if s == split}
              for split in dict.fromkeys(names)}  # fmt: skip
    mixed = next((split for split, found in depths.items() if len(found) > 1), None)
    classes = [] if mixed else natural_order({parts[-1] for parts in places if parts})
    described = describe_images(folder, files, images, options, class_folders=len(classes) > 1)
    columns, caption = described.columns, options.caption_column or CAPTION_COLUMN
    captioned = (
        captioned_splits(columns[caption], images, names, options) if caption in columns else set()
    )
    unclear = mixed and (options.label_column or LABEL_COLUMN) not in columns
    remarks = [f"no classes, because images of {mixed} lie at different depths"] if unclear else []
    remarks += described.remarks
    parts = missing_parts(set(names))
    if parts and names.count("train") >= FEWEST:
        own = parts_of_names([path.relative_to(folder).as_posix() for path in images], parts)
        names = [
            str(part) if name == "train" else name for name, part in zip(names, own, strict=True)
        ]
        remarks.insert(0, held_out_remark(parts))
        captioned |= set(parts) if "train" in captioned else set()
    splits: dict[str, Dataset] = {}
    for split in SPLITS:
        chosen = [number for number, name in enumerate(names) if name == split]
        if chosen:
            said = {
                name: [cells[n] for n in chosen]
                for name, cells in columns.items()
                if name != caption or split in captioned
            }
            splits[split] = _rows(
                [images[n] for n in chosen], [places[n] for n in chosen], classes, said, caption
            )
    return splits, [*remarks, *ignored(files, {*images, *described.files})]


def _rows(
    images: list[Path],
    places: list[tuple[str, ...]],
    classes: list[str],
    described: dict[str, list[Any]],
    caption: str,
) -> Dataset:
    from datasets import ClassLabel, Dataset, Features, Image, List, Value
    from datasets.features.features import generate_from_arrow_type
    from pyarrow import array

    features: dict[str, Any] = {"image": Image(decode=False)}
    columns: dict[str, Any] = {"image": [{"bytes": None, "path": str(path)} for path in images]}
    if len(classes) > 1:
        number = {name: place for place, name in enumerate(classes)}
        features["label"] = ClassLabel(names=classes)
        columns["label"] = [number[parts[-1]] if parts else -1 for parts in places]
    for name, cells in described.items():
        if name == caption:
            several = any(isinstance(cell, list) for cell in cells)
            features[name] = List(Value("string")) if several else Value("string")
        else:
            features[name] = generate_from_arrow_type(array(cells).type)
        columns[name] = cells
    return Dataset.from_dict(columns, features=Features(features))


def ignored(files: Sequence[Path], used: Collection[Path]) -> list[str]:
    """Which files are not used, as ends of a sentence."""
    chosen = set(used)
    left = [path for path in files if path not in chosen]
    tables = [path for path in left if path.stem.lower() == "metadata" or path.name == LABELS_FILE]
    remarks = [f"{path.name} is not read" for path in tables[:1]]
    if left:
        endings = Counter(path.suffix.lower() or "without ending" for path in left)
        named = ", ".join(ending for ending, _ in endings.most_common(5))
        remarks.append(f"{len(left):,} file{'s' * (len(left) > 1)} ignored ({named})")
    return remarks
