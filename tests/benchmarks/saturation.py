"""What MobileNetV1 0.75 gives on a processor without VNNI: predicted, with 8 and with 7 bits of weights.

`python tests/benchmarks/saturation.py [--images N]`. Models and data come from ATTAR_DATA (default:
shared/data beside the repository). The emulation takes about 0.1 s an image.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import rounding
import spine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=128, help="calibration images")
    options = parser.parse_args()
    sys.path.insert(0, str(spine.DATA))
    import load

    from attar.diagnosis import emulate
    from attar.lowering import lower
    from attar_quantize import Static

    images, labels = load.imagenet("dev")
    images = np.ascontiguousarray(load.mobilenet_v1(images).transpose(0, 3, 1, 2))
    model, ctx = rounding.prepared("mobilenet_v1_075", options.images)

    def top1(session: object) -> float:
        name = session.inputs[0].name  # type: ignore[attr-defined]
        parts = [session.run({name: images[i : i + 25]})[0] for i in range(0, len(images), 25)]  # type: ignore[attr-defined]
        found = np.concatenate([p.reshape(len(p), -1) for p in parts])
        return 100 * float((found.argmax(1) == labels).mean())

    print(f"fp32 {top1(rounding.RUNTIME.open(model)):.1f}")
    for bits, reduce in ((8, False), (7, True)):
        small, _ = rounding.applied(model, [Static(reduce_range=reduce)], ctx)
        lowered = lower(small, ctx.target)[0]
        session, start = emulate(lowered, rounding.RUNTIME), time.process_time()
        found = top1(session)
        print(
            f"weights of {bits} bits: exact sums {top1(rounding.RUNTIME.open(lowered)):.1f}, "
            f"without VNNI {found:.1f} ({session.lost.share:.4%} of the pair sums cut off, "
            f"{time.process_time() - start:.0f} CPU s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
