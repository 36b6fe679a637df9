"""Why accuracy dropped: each quantized layer's share in it, the cause, the remedy, and what the remedy would
cost; and what a model will give on processors whose integer kernels saturate."""

from attar.diagnosis.emulator import SaturatingSession, emulate
from attar.diagnosis.measure import Diagnosis, Layer, diagnose
from attar.diagnosis.saturation import Saturation, predict

__all__ = ["Diagnosis", "Layer", "SaturatingSession", "Saturation", "diagnose", "emulate", "predict"]
