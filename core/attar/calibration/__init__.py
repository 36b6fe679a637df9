"""Calibration and evaluation data: whatever the user has, as batches that fit the model's inputs.

`as_data` takes arrays, loaders and data sets of any framework, generators, `.npz`/`.npy` files and folders of
images and gives a `Data`: a stream of `Batch` that can be gone through many times and holds one batch in
memory.
"""

from attar.calibration.batch import Batch
from attar.calibration.data import Data, as_data
from attar.calibration.images import ImagePreprocess

__all__ = ["Batch", "Data", "ImagePreprocess", "as_data"]
