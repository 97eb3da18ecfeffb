"""Numpy batches of the data room -> tensors on a device."""

import numpy as np
import torch

from orchestrator.data import NumpyBatch
from strategies.contract import Batch


def to_device(batch: NumpyBatch, device: torch.device, epoch: int = 0) -> Batch:
    """Arrays -> tensors of the same shapes and types; `epoch` of the training that they are for."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array).to(device)

    return Batch(
        {name: tensor(array) for name, array in batch.inputs.items()},
        tensor(batch.targets),
        tensor(batch.sample_index),
        epoch,
        None if batch.labelled is None else tensor(batch.labelled),
        None if batch.weights is None else tensor(batch.weights),
    )
