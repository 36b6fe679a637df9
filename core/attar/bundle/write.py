"""Writing a bundle, one weight in memory at a time."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from attar import graph
from attar.bundle import codec
from attar.files import place, replacing

if TYPE_CHECKING:
    from attar.passes import Pass
    from attar.report import Report

FORMAT = 1
"""Version of the layout; a reader refuses those that it does not know."""
MANIFEST, MODEL, RECIPE, REPORT = "manifest.json", "model.onnx", "recipe.toml", "report.json"
# Smaller tensors stay in the graph, where deflate takes care of them.
_INLINE = 512
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same model makes the same bytes


@dataclass(frozen=True)
class Summary:
    """What packing came to.

    Attributes:
        bytes: of the bundle.
        plain: of the model as an ONNX file.
        weights: name -> (form, bytes in the bundle, bytes as they were).
    """

    bytes: int
    plain: int
    weights: dict[str, tuple[str, int, int]]

    @property
    def ratio(self) -> float:
        return self.bytes / max(1, self.plain)

    def __str__(self) -> str:
        forms: dict[str, int] = {}
        for form, _, _ in self.weights.values():
            forms[form] = forms.get(form, 0) + 1
        shown = ", ".join(f"{count} {form}" for form, count in sorted(forms.items())) or "none"
        return f"{self.plain} -> {self.bytes} bytes ({self.ratio:.1%}); packed weights: {shown}"


def write(
    model: ir.Model,
    path: str | Path,
    *,
    recipe: Iterable[Pass] | str | None = None,
    report: Report | None = None,
) -> Summary:
    """Pack `model` into the bundle `path`, which keeps its old content until the new one is complete.

    The model is not changed. Equal models make equal bytes.

    Args:
        recipe: passes or TOML to keep with it.
        report: to keep with it; its recipe is taken where none is given.

    Raises:
        InputError: the place cannot be written.
    """
    light = graph.clone(model)
    entries: list[dict[str, Any]] = []
    summary: dict[str, tuple[str, int, int]] = {}
    with replacing(place(path)) as part, zipfile.ZipFile(part, "w", allowZip64=True) as archive:
        files: dict[str, str] = {}

        def put(name: str, data: bytes, *, deflated: bool) -> None:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, compresslevel=9 if deflated else None)
            files[name] = hashlib.sha256(data).hexdigest()

        seen: dict[int, str] = {}  # one tensor object, one entry
        for part_graph in light.graphs():
            for value in part_graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < _INLINE:
                    continue
                name = seen.get(id(tensor))
                if name is None:
                    name = f"weights/{len(entries):05d}"
                    seen[id(tensor)] = name
                    with graph.borrow(tensor) as array:
                        words, itemsize = _words(tensor, array)
                        packed = codec.pack(words)
                        digest = hashlib.sha256(words.tobytes())
                        shape = list(words.shape)
                        del array, words
                    data = b"".join(coded for _, coded, _ in packed.parts)
                    put(name, data, deflated=False)
                    entries.append(
                        {"entry": name, "shape": shape, "itemsize": itemsize, "sha256": digest.hexdigest()}
                        | packed.describe()
                    )
                    summary[value.name or name] = (packed.form, len(data), int(tensor.nbytes))
                value.const_value = ir.ExternalTensor(
                    name, 0, int(tensor.nbytes), tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()), name=value.name or "",
                )  # fmt: skip
        put(MODEL, ir.to_proto(light).SerializeToString(deterministic=True), deflated=True)
        if recipe is None and report is not None:
            recipe = _recipe_of(report)
        if recipe is not None:
            put(RECIPE, _toml(recipe).encode(), deflated=True)
        if report is not None:
            put(REPORT, report.to_json().encode(), deflated=True)
        manifest = {"format": FORMAT, "made_by": "attar", "files": files, "weights": entries}
        put(MANIFEST, json.dumps(manifest, separators=(",", ":"), sort_keys=True).encode(), deflated=True)
    return Summary(place(path).stat().st_size, graph.saved_size(model), summary)


def packed_size(model: ir.Model) -> int:
    """Bytes of the bundle that `write` would make of `model` alone, without recipe and report."""
    with tempfile.TemporaryDirectory(prefix="attar-") as folder:
        return write(model, Path(folder) / "model.attar").bytes


def _words(tensor: ir.TensorProtocol, array: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """The bit patterns of a tensor as unsigned integers in its shape; of numbers below a byte the packed
    bytes."""
    if tensor.dtype.bitwidth < 8:
        return np.frombuffer(tensor.tobytes(), np.uint8), 1
    size = array.dtype.itemsize
    if size not in (1, 2, 4, 8):  # complex numbers
        return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8), 1
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return little.reshape(-1).view(f"<u{size}").reshape(array.shape), size


def _toml(recipe: Iterable[Pass] | str) -> str:
    from attar.recipe import dump_recipe

    return recipe if isinstance(recipe, str) else dump_recipe(recipe)


def _recipe_of(report: Report) -> str | None:
    """The passes of a report as TOML; None where one of them is no longer known."""
    from attar.errors import AttarError
    from attar.recipe import dump_recipe, load_recipe

    try:
        steps = [{"name": s.name, **s.options} for s in report.steps if not s.implied]
        return dump_recipe(load_recipe(steps)) if steps else None
    except AttarError:
        return None
