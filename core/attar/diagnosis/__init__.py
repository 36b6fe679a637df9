"""Why accuracy dropped: each quantized layer's share in it, the cause, the remedy, and what the remedy would
cost."""

from attar.diagnosis.measure import Diagnosis, Layer, diagnose

__all__ = ["Diagnosis", "Layer", "diagnose"]
