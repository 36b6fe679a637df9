"""ONNX's Fourier transforms: complex numbers are a last axis of two."""

from __future__ import annotations

import torch

from attar_torch.writing.leaf import leaf


def _complex(x: torch.Tensor) -> torch.Tensor:
    if x.size(-1) == 2:
        return torch.view_as_complex(x.contiguous())
    return torch.complex(x.squeeze(-1), torch.zeros_like(x.squeeze(-1)))


@leaf
def dft(x: torch.Tensor, axis: int, length: int | None, onesided: bool, inverse: bool) -> torch.Tensor:
    """Discrete Fourier transform along `axis`, cut or filled with zeros to `length`."""
    if onesided and inverse:
        return torch.fft.irfft(_complex(x), length, axis).unsqueeze(-1)
    if onesided:
        return torch.view_as_real(torch.fft.rfft(x.squeeze(-1), length, axis))
    function = torch.fft.ifft if inverse else torch.fft.fft
    return torch.view_as_real(function(_complex(x), length, axis))


@leaf
def stft(
    x: torch.Tensor, step: int, window: torch.Tensor | None, length: int, onesided: bool
) -> torch.Tensor:
    """Transforms of frames of `length` that begin every `step`: (batch, frames, frequencies, 2)."""
    real = x.dim() == 2 or x.size(-1) == 1
    signal = (x if x.dim() == 2 else x.squeeze(-1)) if real else _complex(x)
    frames = signal.unfold(-1, length, step)
    if window is not None:
        frames = frames * window
    if real and onesided:
        return torch.view_as_real(torch.fft.rfft(frames))
    made = torch.view_as_real(torch.fft.fft(frames))
    return made[..., : length // 2 + 1, :] if onesided else made
