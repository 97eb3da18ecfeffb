"""Numpy batches of the data room -> tensors on a device."""

import numpy as np
import torch

from orchestrator.data import NumpyBatch
from strategies.contract import Batch


def to_device(batch: NumpyBatch, device: torch.device) -> Batch:
    """[R, T] arrays -> [R, T] int64 tensors."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, dtype=torch.int64).to(device)

    return Batch(
        tensor(batch.input_ids),
        tensor(batch.position_ids),
        tensor(batch.targets),
        tensor(batch.sample_index),
    )
