"""`factor.separable`: convolutions as depthwise separable ones, fitted on data."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir

from attar import graph, solve
from attar.context import Context
from attar.errors import Refused
from attar.passes import Doc, Pass, Range
from attar_factor import decompose
from attar_factor.candidates import Factors
from attar_factor.layers import Array, Layer, find_layers
from attar_factor.lowrank import check_keep, is_kept
from attar_factor.parts import parts, whole
from attar_factor.refit import STAGES, refit
from attar_factor.write import Writer, Written

_DAMPING = 1e-3
_ROUNDS, _STEPS = 20, 12


class Separable(Pass, name="factor.separable"):
    """Write k x k convolutions as depthwise k x k and 1 x 1 (MobileNet's layer), fitted on calibration data.

    That is a far smaller family of functions than low rank: each input channel gets `multiplier` kernels, of
    which all outputs are made. Kernels and 1 x 1 weights are solved in turn, each the least-squares solution
    for the other, weighed by the second moments of the layer's inputs. Trained networks rarely bear it in all
    layers without training; `max_error` leaves those whole that would lose too much.
    """

    requires = ("fuse.inference",)
    needs = ("calibration",)
    aim: ClassVar = "size"

    multiplier: Annotated[int, Range(1), Doc("kernels for each input channel")] = 1
    max_error: Annotated[
        float, Range(0.0, 1.0), Doc("largest share of a layer's output energy that may be lost")
    ] = 0.1
    refit: Annotated[bool, Doc("solve 1 x 1 layers again for the inputs of the changed network")] = True
    keep: Annotated[tuple[str, ...], Doc("patterns of node or output names to leave alone")] = ()

    def apply(self, model: ir.Model, ctx: Context) -> None:
        layers, refused = find_layers(model, ctx.shapes(model))
        check_keep(self.name, self.keep, [n for la in layers for n in la.nodes] + [n for n, _ in refused])
        for node, reason in refused:
            if node.op_type == "Conv":
                ctx.skip(node, reason)
        wanted = [layer for layer in layers if layer.is_conv and self._wanted(layer, ctx)]
        if not wanted:
            raise Refused("no convolution can be made depthwise separable")
        found: dict[Layer, tuple[Factors, Array, float]] = {}
        by_want = {layer.wants[0]: layer for layer in reversed(wanted)}
        for want, gram in ctx.grams(model, list(by_want)):
            for layer in [la for la in wanted if la.wants[0] == want]:
                centred = layer.bias is not None
                h = solve.damped(gram.covariance if centred else gram.moment, _DAMPING)
                factors = separate(layer.rows, layer.channels, self.multiplier, h)
                factors = Factors(
                    (factors.weights[0].reshape(-1, 1, *layer.kernel),), factors.features, factors.last
                )
                energy = decompose.cost(layer.rows, h)
                lost = decompose.cost(layer.rows - factors.last @ factors.features, h)
                found[layer] = factors, gram.mean, lost / energy if energy > 0 else 0.0
        original, writer = graph.clone(model), Writer(model)
        written: list[Written] = []
        for layer in wanted:
            factors, mean, error = found[layer]
            if error > self.max_error:
                ctx.skip(layer.node, f"{error:.1%} of its output energy would be lost, more than max_error")
                continue
            name = layer.name
            chain = parts(layer, "separable", (self.multiplier,))
            one = writer.write(layer, chain, factors, mean)
            assert one is not None
            written.append(one)
            ctx.note(f"{name}: depthwise separable, {1 - error:.2%} of its energy kept")
        if not written:
            raise Refused(
                "every convolution would lose more than max_error of its output energy",
                hint="raise max_error or multiplier, and fine-tune the result",
            )
        graph.tidy(model)
        if self.refit:
            refit(model, original, written, ctx, writer, stages=STAGES)

    def _wanted(self, layer: Layer, ctx: Context) -> bool:
        why = ""
        if any(is_kept(node, self.keep) for node in layer.nodes):
            why = "kept by option keep"
        elif layer.group > 1:
            why = "it has groups"
        elif math.prod(layer.kernel) == 1:
            return False
        elif len(layer.nodes) > 1:
            why = "its weight is shared"
        else:
            after = sum(part.parameters for part in parts(layer, "separable", (self.multiplier,)))
            if after >= whole(layer).parameters:
                why = f"{after} parameters in place of {whole(layer).parameters} would be no gain"
        if why:
            ctx.skip(layer.node, why)
        return not why


def separate(weight: Array, channels: int, multiplier: int, h: Array | None) -> Factors:
    """Depthwise and pointwise weights that together come nearest to a convolution.

    W_o,(i,t) ~ sum over m of P_o,(i,m) D_(i,m),t. Start: the truncated SVD of each input channel's
    `[outputs, taps]`. Then P is solved exactly for given D, and D improved for given P by conjugate gradients
    on its normal equations; the cost never rises.

    Args:
        weight: `[1, outputs, K]`, K = channels * taps.
        h: `[1, K, K]`, positive definite; None: the identity, whose optimum the start is.

    Returns:
        Depthwise weights `[channels * multiplier, taps]`, features and last layer.
    """
    _, outputs, depth = weight.shape
    taps = depth // channels
    tensor = weight[0].reshape(outputs, channels, taps).astype(np.float64)
    u, s, vt = np.linalg.svd(tensor.transpose(1, 0, 2), full_matrices=False)
    many = min(multiplier, s.shape[1])
    kernels = np.zeros((channels, multiplier, taps))
    kernels[:, :many] = vt[:, :many]
    last = np.zeros((1, outputs, channels, multiplier))
    last[0, ..., :many] = (u[..., :many] * s[:, None, :many]).transpose(1, 0, 2)
    last = last.reshape(1, outputs, -1)
    if h is not None:
        target = weight[0] @ h[0]
        before = np.inf
        for _ in range(_ROUNDS):
            last = decompose.best_last(weight, _features(kernels), h, last)
            kernels = _improve(kernels, last[0], target, h[0])
            now = decompose.cost(weight - last @ _features(kernels), h)
            if before - now < 1e-4 * before:
                break
            before = now
        last = decompose.best_last(weight, _features(kernels), h, last)
    return Factors((kernels.reshape(-1, taps),), _features(kernels), last)


def _features(kernels: Array) -> Array:
    """F `[1, channels * multiplier, K]`: each row has the taps of its channel."""
    channels, multiplier, taps = kernels.shape
    spread = np.einsum("imt,ij->imjt", kernels, np.eye(channels))
    return np.asarray(spread.reshape(1, channels * multiplier, channels * taps))


def _improve(kernels: Array, last: Array, target: Array, h: Array) -> Array:
    """Conjugate gradients for P^T P D H = P^T W H, as far as D is free."""
    channels, multiplier, taps = kernels.shape
    by_channel = last.reshape(-1, channels, multiplier)

    def spread(d: Array) -> Array:
        return np.asarray(np.einsum("oim,imt->oit", by_channel, d).reshape(len(last), -1))

    def gather(e: Array) -> Array:
        wide = e.reshape(len(last), channels, taps)
        return np.asarray(np.einsum("oim,oit->imt", by_channel, wide))

    d = kernels.copy()
    residual = gather(target - spread(d) @ h)
    direction, size = residual.copy(), float(np.sum(residual**2))
    for _ in range(_STEPS):
        if size <= 0.0:
            break
        applied = gather(spread(direction) @ h)
        curvature = float(np.sum(direction * applied))
        if curvature <= 0.0:
            break
        d += size / curvature * direction
        residual -= size / curvature * applied
        new = float(np.sum(residual**2))
        direction = residual + new / size * direction
        size = new
    return d
