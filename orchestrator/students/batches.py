"""Numpy batches of the data room -> tensors on a device."""

import torch

from orchestrator.data import NumpyBatch
from strategies.contract import Batch


def to_device(batch: NumpyBatch, device: torch.device) -> Batch:
    """[R, T] arrays -> [R, T] int64 tensors."""
    arrays = (batch.input_ids, batch.position_ids, batch.targets, batch.sample_index)
    return Batch(*(torch.as_tensor(a, dtype=torch.int64).to(device) for a in arrays))
