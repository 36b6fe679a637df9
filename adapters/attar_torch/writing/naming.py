"""Names of submodules and parameters: the source's own wherever it has any."""

from __future__ import annotations

import keyword
import re
from collections.abc import Set

import torch

_WEIGHT = re.compile(r"^(.+?)[./](?:weight|weight_t|kernel|gamma|W|weight_ih_l0)$")
_LAYER = re.compile(r"^(.+)\.(?:lstm|gru|rnn|rnn_tanh|rnn_relu|prelu)(?:_\d+)?$", re.I)
_OP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def clean(name: str) -> str:
    """`name` as a dotted path that can be reached as attributes of modules."""
    pieces = []
    for piece in re.split(r"[./]+|::", name):
        word = re.sub(r"\W", "_", piece)
        if not word.strip("_"):
            continue
        if keyword.iskeyword(word) or hasattr(torch.nn.Module, word) or word.startswith("__"):
            word = f"{word.strip('_')}_"
        pieces.append(word)
    return ".".join(pieces)


def of_weight(name: str) -> str | None:
    """`features.0.conv` for `features.0.conv.weight`; None for names that say no such thing."""
    found = _WEIGHT.match(name)
    return (clean(found[1]) or None) if found else None


def of_layer(name: str) -> str | None:
    """`encoder` for a node `encoder.lstm_2`, which is named after the layer and its operator."""
    found = _LAYER.match(name)
    return found[1] if found else None


def of_operator(op: str) -> str:
    """`conv_transpose` for `ConvTranspose`."""
    return _OP.sub("_", op.rsplit("::", 1)[-1]).lower()


def identifier(name: str) -> str:
    """`name` as the name of an argument of `forward`."""
    word = re.sub(r"\W", "_", name) or "input"
    if word[0].isdigit():
        word = f"x{word}"
    return f"{word}_" if keyword.iskeyword(word) or word == "self" else word


class Paths:
    """Which paths of a module tree are taken."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._occupied: set[str] = set()

    def free(self, path: str) -> str:
        """`path`, with numbers behind its pieces where needed: not taken, not above and not below anything
        taken."""
        made = ""
        *above, last = path.split(".")
        for piece in above:
            made = self._numbered(f"{made}.{piece}" if made else piece, self._taken)
        return self._numbered(f"{made}.{last}" if made else last, self._occupied)

    def take(self, path: str) -> str:
        path = self.free(path)
        self._taken.add(path)
        self._occupied.add(path)
        for above in _above(path):
            self._occupied.add(above)
        return path

    @staticmethod
    def _numbered(path: str, taken: Set[str]) -> str:
        candidate, count = path, 0
        while candidate in taken:
            count += 1
            candidate = f"{path}_{count}"
        return candidate


def _above(path: str) -> list[str]:
    pieces = path.split(".")
    return [".".join(pieces[:k]) for k in range(1, len(pieces))]
