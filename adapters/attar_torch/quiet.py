"""Running torch's exporters without their chatter, and without leaving a trace on the module."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed, warned or logged in the block."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def inference(module: torch.nn.Module) -> Iterator[None]:
    """`module` is in eval mode and records no gradients in the block; every training flag is put back after
    it.

    The fused path of `nn.TransformerEncoder` and `nn.MultiheadAttention`, which no exporter can say, is off.
    """
    flags = [(m, m.training) for m in module.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        module.eval()
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, flag in flags:
            part.training = flag
