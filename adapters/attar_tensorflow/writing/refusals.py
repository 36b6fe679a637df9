"""All refusals of a graph in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from attar.errors import ConversionError


class Refusals:
    """Lowers nodes one after the other and keeps what is refused; nodes that depend on a refused one are
    passed over, because nothing can be said of them."""

    def __init__(self) -> None:
        self._errors: list[ConversionError] = []
        self._doubtful: set[ir.Value] = set()

    def attempt(self, node: ir.Node, lower: Callable[[ir.Node], None]) -> None:
        """Call `lower(node)`."""
        if any(v in self._doubtful for v in _needs(node)):
            self._doubtful.update(node.outputs)
            return
        try:
            lower(node)
        except ConversionError as error:
            self._errors.append(error)
            self._doubtful.update(node.outputs)

    def check(self) -> None:
        """End the writing if there was a refusal.

        Raises:
            ConversionError: there was; it names all nodes and the reasons.
        """
        if not self._errors:
            return
        if len(self._errors) == 1:
            raise self._errors[0]
        missing: dict[str, list[str]] = {}
        for error in self._errors:
            for op, nodes in error.missing.items():
                missing.setdefault(op, []).extend(nodes)
        reasons = dict.fromkeys(error.message.split("\n")[0] for error in self._errors)
        raise ConversionError("; ".join(reasons), missing=missing)


def _needs(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of `node` and of the nodes in its subgraphs, which may be values around it."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = attribute.as_graph()
            yield from inner.outputs
            for each in ir.traversal.RecursiveGraphIterator(inner):
                yield from (v for v in each.inputs if v is not None)
