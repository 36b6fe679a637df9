"""`.attar` bundles: a model in one small file, without loss, with recipe, report and hashes.

A bundle is an ordinary zip:

    manifest.json     format, hashes, and how each weight is packed
    model.onnx        the graph; weights above a few bytes are names of entries
    weights/00000     the coded bytes of one weight, ...
    recipe.toml       the passes, where they are known
    report.json       what was measured, where there is a report

`write` makes one, `read` gives the model back, every tensor to the byte.
"""

from attar.bundle.read import Bundle, is_bundle, read
from attar.bundle.write import Summary, packed_size, write

__all__ = ["Bundle", "Summary", "is_bundle", "packed_size", "read", "write"]
