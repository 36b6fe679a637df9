"""Opens whatever the user has as a stream of items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.adapters import type_path
from attar.calibration.arrays import is_array, is_image
from attar.calibration.batch import Batching
from attar.calibration.folder import SUFFIXES, Folder
from attar.calibration.images import EXAMPLE, as_preprocess
from attar.calibration.items import ImageReader, fits, split
from attar.calibration.stored import Archive, open_npy
from attar.errors import AttarError, InputError
from attar.specs import TensorSpec


@dataclass(frozen=True)
class Source:
    """A stream of items that can be opened.

    Attributes:
        open: a new iterator over the items.
        what: what it is, for messages.
        once: `open` works only once.
        length: number of items, if known.
        rows: number of samples, if known.
        cheap: an item can be looked at without cost.
        image: turns PIL images among the items into arrays.
        notes: what the reader of a report should know.
    """

    open: Callable[[], Iterator[Any]]
    what: str
    once: bool = False
    length: int | None = None
    rows: int | None = None
    cheap: bool = False
    image: ImageReader | None = None
    notes: tuple[str, ...] = ()

    def items(self) -> Iterator[Any]:
        """The items; an exception of the source comes out as `InputError`."""
        at = 0
        try:
            iterator = self.open()
            while True:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                yield item
                del item
                at += 1
        except AttarError:
            raise
        except Exception as error:
            raise InputError(
                f"{self.what}: reading item {at} failed: {type(error).__name__}: {error}"
            ) from error


def open_source(
    source: Any,
    specs: Sequence[TensorSpec],
    batching: Batching,
    *,
    preprocess: Any,
    size: int,
    limit: int | None,
) -> Source:
    """See `as_data` for what `source` may be; `size` is the batch size for data that come in one piece.

    Raises:
        InputError: it is nothing that can be read, or does not fit the model.
    """
    if isinstance(source, str | Path):
        return _path(Path(source), specs, batching, preprocess, size)
    image = None
    if preprocess is not None:
        image = as_preprocess(preprocess, _only(specs, "images"))
        if is_array(source) or isinstance(source, Mapping):
            raise InputError(
                "preprocess= is for images, these are arrays",
                hint="preprocess arrays yourself before handing them in",
            )
    if is_array(source):
        return _array(source, specs, batching, size)
    what = type_path(source)[0].removeprefix("builtins.")
    if isinstance(source, Mapping) or (isinstance(source, tuple) and fits(source, len(specs))):
        return _columns(
            split(source, specs, "the data"), specs, batching, size, f"the {what.rpartition('.')[2]}"
        )
    if is_image(source):
        return Source(lambda: iter([source]), "the image", length=1, image=image)
    if isinstance(source, bytes) or source is None or isinstance(source, type):
        raise _unreadable(source)
    if "mxnet.io.io.DataIter" in type_path(source):
        return Source(lambda: _mxnet_iter(source, len(specs)), what, image=image)
    if limit is None and callable(getattr(source, "cardinality", None)) and _endless(source):
        raise InputError(f"{what} repeats for ever", hint="give limit=, the number of samples to use")
    length = _length(source)
    if length == 0:
        raise InputError(f"the data are empty: {what} of length 0")
    indexable = hasattr(type(source), "__getitem__") and length is not None
    if hasattr(type(source), "__next__") and not indexable:
        return Source(lambda: iter(source), what, once=True, image=image)
    if hasattr(type(source), "__iter__") and not (indexable and hasattr(type(source), "__next__")):
        cheap = isinstance(source, list | tuple)
        return Source(lambda: iter(source), what, length=length, cheap=cheap, image=image)
    if indexable:
        assert length is not None
        count = length
        return Source(lambda: (source[i] for i in range(count)), what, length=length, cheap=True, image=image)
    if hasattr(type(source), "__getitem__"):
        return Source(lambda: iter(source), what, image=image)
    if callable(source):
        return Source(
            lambda: iter(source()), f"the iterator of {getattr(source, '__qualname__', what)}", image=image
        )
    raise _unreadable(source)


def _unreadable(source: Any) -> InputError:
    return InputError(
        f"data cannot be read from {type_path(source)[0]}",
        hint="give arrays, an iterable of batches, a DataLoader or Dataset, a function that returns an "
        "iterator, an .npz or .npy file, or a folder of images",
    )


def _only(specs: Sequence[TensorSpec], what: str) -> TensorSpec:
    if len(specs) != 1:
        names = ", ".join(s.name for s in specs)
        raise InputError(
            f"{what} feed one input; the model has {len(specs)}: {names}", hint="give dicts by name"
        )
    return specs[0]


def _path(path: Path, specs: Sequence[TensorSpec], batching: Batching, preprocess: Any, size: int) -> Source:
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"no such file or folder: {str(path)[:200]} ({error.__class__.__name__})") from None
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in SUFFIXES:
        if preprocess is None:
            raise InputError(f"{path}: say how images become inputs", hint=f"for example {EXAMPLE}")
        read = as_preprocess(preprocess, _only(specs, "images"))
        folder = Folder.scan(path)
        notes: tuple[str, ...] = ()
        if folder.classes is not None:
            shown = ", ".join(f"{i} {c}" for i, c in enumerate(folder.classes[:10]))
            more = f" and {len(folder.classes) - 10} more" if len(folder.classes) > 10 else ""
            notes = (f"labels of {path} by folder: {shown}{more}",)
        count = len(folder.files)
        return Source(lambda: folder.items(read), str(path), length=count, rows=count, notes=notes)
    if preprocess is not None:
        raise InputError(f"{path}: preprocess= is for images", hint="arrays in files are taken as they are")
    if suffix == ".npy":
        return _array(open_npy(path), specs, batching, size, str(path))
    if suffix == ".npz":
        archive = Archive(path, specs, batching)
        if archive.streams:
            if archive.rows == 0:
                raise InputError(f"the data are empty: {path} has 0 rows")
            return Source(lambda: archive.batches(size), str(path), rows=archive.rows)
        return _columns(archive.whole(), specs, batching, size, str(path))
    raise InputError(
        f"{path}: data files are .npz, .npy and images, not {suffix or 'without suffix'!r}",
        hint="for other formats give a function that returns an iterator of arrays",
    )


def _array(
    array: Any, specs: Sequence[TensorSpec], batching: Batching, size: int, what: str = "the array"
) -> Source:
    rank = None if specs[0].shape is None else len(specs[0].shape)
    if len(specs) == 1 and rank is not None and len(array.shape) == rank + 1 and batching.splittable:
        count = int(array.shape[0])  # one axis more than a batch: an array of batches
        if count == 0:
            raise InputError(f"the data are empty: {what} has shape {list(array.shape)}")
        return Source(lambda: (array[i] for i in range(count)), what, length=count)
    return _columns(split(array, specs, what), specs, batching, size, what)


def _columns(
    parts: tuple[dict[str, Any], Any], specs: Sequence[TensorSpec], batching: Batching, size: int, what: str
) -> Source:
    """All samples in one piece: slices along axis 0, which numpy, torch and the others give without a
    copy."""
    inputs, labels = parts
    if not batching.splittable or any(not _is_stack(inputs[s.name], s) for s in specs):
        item = inputs if labels is None else (inputs, labels)
        return Source(lambda: iter([item]), what, length=1)
    columns = {**inputs} if labels is None else {**inputs, "labels": labels}
    rows = {name: _rows(c, f"{what}, {name}") for name, c in columns.items()}
    if len(set(rows.values())) > 1:
        raise InputError(
            f"{what}: parts of different length: " + ", ".join(f"{k} {n}" for k, n in rows.items())
        )
    count = next(iter(rows.values()))
    if count == 0:
        raise InputError(f"the data are empty: {what} has 0 samples")

    def slices() -> Iterator[Any]:
        for at in range(0, count, size):
            cut = {name: c[at : at + size] for name, c in inputs.items()}
            yield cut if labels is None else (cut, labels[at : at + size])

    return Source(slices, what, rows=count)


def _rows(column: Any, what: str) -> int:
    if isinstance(column, list | tuple):
        return len(column)
    shape = getattr(column, "shape", None)
    if shape is None or len(shape) == 0:
        raise InputError(f"{what} is no array with one row a sample")
    return int(shape[0])


def _is_stack(column: Any, spec: TensorSpec) -> bool:
    """Whether a column holds many samples along axis 0, and not a single one."""
    if isinstance(column, list):
        return True
    shape = getattr(column, "shape", None)
    return shape is not None and len(shape) > 0 and (spec.shape is None or len(shape) >= len(spec.shape))


def _mxnet_iter(source: Any, inputs: int) -> Iterator[Any]:
    """An MXNet `DataIter`: rewound by `reset`; the last batch repeats samples, `pad` of them."""
    source.reset()
    for batch in source:
        arrays = [*batch.data, *(batch.label or [])]
        keep = int(arrays[0].shape[0]) - int(batch.pad or 0)
        parts = [a[:keep] for a in arrays]
        del batch, arrays
        yield tuple(parts) if len(parts) <= inputs + 1 else (tuple(parts[:inputs]), tuple(parts[inputs:]))
        del parts


def _endless(source: Any) -> bool:
    try:
        return int(source.cardinality()) == -1  # tf.data.INFINITE_CARDINALITY
    except Exception:  # some other library's `cardinality`
        return False


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except Exception:  # loaders of unknown length raise TypeError, NotImplementedError and others
        return None
