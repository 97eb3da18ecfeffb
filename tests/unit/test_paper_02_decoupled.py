"""Zhao et al., arXiv:2203.08679: KL is a binary part and (1 - p_y) times the others' part."""

import torch
from tiny_objective import Scene, objective_of, result, scene

from strategies.contract import Batch


def _one(seen: Scene, position: int) -> Scene:
    mask = torch.zeros_like(seen.batch.mask)
    row, column = seen.batch.mask.nonzero()[position].tolist()
    mask[row, column] = True
    targets = seen.batch.targets.masked_fill(~mask, -100)
    roles = {name: logits[position : position + 1] for name, logits in seen.roles.items()}
    hidden = seen.hidden.detach()[position : position + 1].requires_grad_()
    return Scene(hidden, roles, Batch(seen.batch.inputs, targets, seen.batch.sample_index))


def test_with_the_roles_own_doubt_as_weight_it_is_kl() -> None:
    seen = scene(8)
    for position in range(len(seen.labels)):
        one = _one(seen, position)
        doubt = 1 - float(one.roles["teacher"].softmax(1)[0, one.labels[0]])
        decoupled = {"kind": "decoupled", "label_weight": 1.0, "others_weight": doubt}
        got, of_parts, _ = result(objective_of(decoupled), one)
        whole, of_whole, _ = result(objective_of({"kind": "forward_kl"}), one)
        assert abs(float(got - whole)) < 1e-12
        assert (of_parts - of_whole).abs().max() < 1e-12
