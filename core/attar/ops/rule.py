"""What a pass needs to know of an operator: `OpRule`, and `AxisLink`, the unit of channel flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

LinkKind = Literal["same", "part", "block", "pick", "group", "mix"]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AxisLink:
    """How the indices of one input axis correspond to the indices of one output axis.

    With i an index of the input axis and o one of the output axis, (i, o) correspond when

    - same:  i == o, over the whole axis.
    - part:  i == in_start + k * in_step and o == out_start + k for some 0 <= k < size (Concat, Split, Slice,
      Pad).
    - block: (i // in_inner) % size == (o // out_inner) % size (Reshape, Flatten, Tile, DepthToSpace): channel
      c of a flattened [C, H, W] owns the outputs c*H*W ... (c+1)*H*W - 1, so in_inner = 1, out_inner = H*W,
      size = C.
    - group: the same formula as block, but every output of a group depends on every input of it (grouped
      Conv).
    - pick:  o is made from i == indices[o] (Gather by constants, reflecting Pad); -1 stands for "from no
      input".
    - mix:   every o depends on every i; a new axis made by weights (Conv, MatMul).

    `exact` says that changing input index i (with all else equal) changes no output but the corresponding
    ones. Softmax or LayerNormalization over an axis keep the correspondence ("same") but not the independence
    (`exact` False): removing a channel removes one channel of the output and changes the others.

    An input axis without any link is *pinned*: nothing is known of how its indices reach the output.
    """

    input: int
    input_axis: int
    output: int
    output_axis: int
    kind: LinkKind = "same"
    size: int = -1
    in_start: int = 0
    in_step: int = 1
    in_inner: int = 1
    out_start: int = 0
    out_inner: int = 1
    indices: tuple[int, ...] = ()
    exact: bool = True

    def outputs_of(self, index: int, out_size: int) -> Ints:
        """The output indices that correspond to input index `index`; `out_size` is the length of the output
        axis."""
        everything: Ints = np.arange(out_size, dtype=np.int64)
        if self.kind == "same":
            return everything[index : index + 1]
        if self.kind == "part":
            k, rest = divmod(index - self.in_start, self.in_step)
            return (
                everything[self.out_start + k :][:1] if rest == 0 and 0 <= k < self.size else everything[:0]
            )
        if self.kind in ("block", "group"):
            key = (index // self.in_inner) % self.size
            found: Ints = everything[(everything // self.out_inner) % self.size == key]
            return found
        if self.kind == "pick":
            return np.flatnonzero(np.asarray(self.indices) == index)
        return everything

    def inputs_of(self, index: int, in_size: int) -> Ints:
        """The input indices that correspond to output index `index`; `in_size` is the length of the input
        axis."""
        everything: Ints = np.arange(in_size, dtype=np.int64)
        if self.kind == "same":
            return everything[index : index + 1]
        if self.kind == "part":
            k = index - self.out_start
            return (
                everything[self.in_start + k * self.in_step :][:1] if 0 <= k < self.size else everything[:0]
            )
        if self.kind in ("block", "group"):
            key = (index // self.out_inner) % self.size
            found: Ints = everything[(everything // self.in_inner) % self.size == key]
            return found
        if self.kind == "pick":
            chosen = self.indices[index]
            return everything[chosen : chosen + 1] if chosen >= 0 else everything[:0]
        return everything


@dataclass(frozen=True)
class Contraction:
    """Two input axes that are multiplied and summed over together, so that they must shrink together.

    Index i of axis `axis` of input `input` meets index i % (n / groups) of axis `other_axis` of input
    `other`, where n is the length of the first. With groups > 1 (grouped Conv) the meeting happens in the
    weight rows of group i // (n / groups) alone.
    """

    input: int
    axis: int
    other: int
    other_axis: int
    groups: int = 1


Links = Callable[[ir.Node], list[AxisLink]]


def op_key(domain: str, op_type: str) -> str:
    """`Conv` for an operator of the default domain, `com.example::Conv` for one of another."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}::{op_type}"


def no_links(node: ir.Node) -> list[AxisLink]:
    """Nothing is known of how channels flow; all input axes are pinned."""
    return []


def no_contractions(node: ir.Node) -> list[Contraction]:
    return []


def no_macs(node: ir.Node) -> int | None:
    """No multiply-accumulates: data movement, or arithmetic of the order of the elements."""
    return 0


def first_axis(node: ir.Node) -> int:
    return 0


@dataclass(frozen=True)
class OpRule:
    """One operator.

    Attributes:
        op_type, domain: which operator; domain "" is the default ONNX one.
        weights: inputs that are weights when they are constant.
        bias: the input that is added per output channel, None if there is none.
        weight_axis: node -> output-channel axis of the weight. For ConvTranspose it is 1, which counts
            channels inside
            one group: output channel o is [:, o % (M/g)] of the input rows of group o // (M/g).
        macs: node -> multiply-accumulates of one run, None if a rank is unknown. Symbolic dimensions count as
            1.
        flow: node -> links from input axes to output axes. Needs inferred shapes; what they do not say stays
            pinned.
        contractions: node -> input axes that are summed over together.
        quantizable: inputs that may carry quantized data; -1 is every input (see `quantizable_inputs`).
        keeps_values: every output element is an element of a quantizable input, or a zero of padding, so that
            a quantization scale carries through unchanged. What depends on attributes (Pad's mode) asks
            `keeps(node)`.
        keeps: node -> whether this very node keeps values; refines `keeps_values`.
        elementwise: output element i depends only on input elements i (after broadcasting).
        activation: elementwise with one data input (nonlinearities and unary arithmetic).
    """

    op_type: str
    domain: str = ""
    weights: tuple[int, ...] = ()
    bias: int | None = None
    weight_axis: Callable[[ir.Node], int] = first_axis
    macs: Callable[[ir.Node], int | None] = no_macs
    flow: Links = no_links
    contractions: Callable[[ir.Node], list[Contraction]] = no_contractions
    quantizable: tuple[int, ...] = ()
    keeps_values: bool = False
    keeps: Callable[[ir.Node], bool] | None = None
    elementwise: bool = False
    activation: bool = False

    @property
    def key(self) -> str:
        """The name of the operator in `Registry.ops`."""
        return op_key(self.domain, self.op_type)

    def quantizable_inputs(self, node: ir.Node) -> tuple[int, ...]:
        """`quantizable` for this node: variadic operators written out, absent optional inputs left out."""
        wanted = range(len(node.inputs)) if self.quantizable == (-1,) else self.quantizable
        return tuple(i for i in wanted if i < len(node.inputs) and node.inputs[i] is not None)

    def keeps_values_of(self, node: ir.Node) -> bool:
        """Whether this node's output holds only elements of its inputs and zeros."""
        return self.keeps_values and (self.keeps is None or self.keeps(node))
