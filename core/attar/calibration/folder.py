"""Image files: which there are in a folder, and how one is read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.calibration.batch import Array
from attar.errors import AttarError, InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Folder:
    """The image files under a folder, sorted; `classes` are its sub-folders, sorted, or None if it has
    none."""

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...] | None

    @classmethod
    def scan(cls, root: Path) -> Folder:
        """List the images below `root`.

        Raises:
            InputError: there are none, or some lie beside the class folders.
        """
        if root.is_file():
            return cls((root,), None, None)
        try:
            entries = sorted(e for e in root.iterdir() if not e.name.startswith("."))
        except OSError as error:
            raise InputError(f"cannot read the folder {root}: {error.strerror}") from error
        folders = [e for e in entries if e.is_dir()]
        loose = [e for e in entries if e.suffix.lower() in SUFFIXES and e.is_file()]
        found = [(file, label) for label, folder in enumerate(folders) for file in _images_below(folder)]
        if loose and found:
            raise InputError(
                f"{root} has {len(loose)} images beside its class folders ({loose[0].name}, ...)",
                hint="put every image in the folder of its class, or all in one folder, without labels",
            )
        if not loose and not found:
            raise InputError(f"no images in {root}", hint="looked for " + ", ".join(SUFFIXES))
        if loose:
            return cls(tuple(loose), None, None)
        return cls(tuple(f for f, _ in found), tuple(n for _, n in found), tuple(f.name for f in folders))

    def items(self, read: Callable[[Any], Array]) -> Iterator[Any]:
        """`read` of each image, with its label if there are any."""
        for at, file in enumerate(self.files):
            array = load_image(file, read)
            yield array if self.labels is None else (array, self.labels[at])
            del array


def load_image(path: Path, read: Callable[[Any], Array]) -> Array:
    """`read` of the image in `path`.

    Raises:
        InputError: naming the file: broken, too many pixels, or `read` failed.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return read(image)
    except AttarError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is too large an image: {error}") from error
    except (
        Exception
    ) as error:  # PIL's readers raise a dozen kinds on broken files, and `read` may be the user's
        raise InputError(f"{path} cannot be read as an image: {type(error).__name__}: {error}") from error


def _images_below(folder: Path) -> list[Path]:
    found = [Path(at) / name for at, _, names in os.walk(folder) for name in names]
    return sorted(f for f in found if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
