"""Rows in order of size, against torch's own stable sort; what ties do to who is in a head."""

import pytest
import torch

from strategies.kernels import Pair, adaptive_kl
from strategies.ranking import at_rank, descending, ranked
from strategies.softening import soften
from strategies.targets import keep_top


def _rows(dtype: torch.dtype) -> torch.Tensor:
    """Probabilities with equals, zeros, the smallest numbers there are, and one that is all."""
    make = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 300, generator=make, dtype=torch.float64).mul(8).softmax(1).to(dtype)
    rows[0, ::3] = rows[0, 0]
    rows[1, 50:] = 0.0
    rows[2] = 1 / 300
    rows[3] = 0.0
    rows[3, 17] = 1.0
    rows[4, :20] = torch.finfo(dtype).smallest_normal / 4
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_ordered_as_by_a_stable_sort(dtype: torch.dtype) -> None:
    rows = _rows(dtype)
    wanted = rows.sort(dim=1, descending=True, stable=True)
    values, order = ranked(rows)
    assert torch.equal(values, wanted.values) and torch.equal(order, wanted.indices)
    assert torch.equal(descending(rows), wanted.values)
    columns = rows.t().contiguous().t()  # not as they lie in memory
    assert torch.equal(ranked(columns)[1], wanted.indices)
    for rank in (1, 7, 299, 300):
        assert torch.equal(at_rank(rows, rank), wanted.values[:, rank - 1 : rank])
        assert torch.equal(at_rank(rows.log(), rank), wanted.values[:, rank - 1 : rank].log())


def test_of_entries_that_are_equally_likely_the_first_are_in_the_head() -> None:
    p = soften(torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 1.0, 0.0, 0.0]], dtype=torch.float64))
    q = soften(torch.tensor([[3.0, 1.0, 0.0, -2.0], [0.0, 1.0, 0.0, 0.0]], dtype=torch.float64))
    pair = Pair(p.probability, p.log, q.probability, q.log, p.log - q.log)
    value, _ = adaptive_kl(pair, 0.5, wanted=True)
    gap = (p.probability - q.probability).abs()
    share = torch.stack([gap[0, :2].sum() / gap[0].sum(), gap[1, 0] / gap[1].sum()])
    forward = (p.probability * (p.log - q.log)).sum(1)
    reverse = (q.probability * (q.log - p.log)).sum(1)
    wanted = share * forward + (1 - share) * reverse
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)


def test_no_more_entries_are_kept_than_asked_for_where_some_are_equal() -> None:
    logits = torch.tensor([[2.0, 2.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    kept = torch.softmax(keep_top(logits, 0.5, 1.0), 1)
    plain = torch.softmax(logits, 1)
    assert sorted(kept[0].tolist()) == pytest.approx(
        sorted([*[float(plain[0, 0])] * 2, *[float(plain[0, 2:].sum()) / 2] * 2])
    )
    assert kept[1, :2].tolist() == pytest.approx(plain[1, :2].tolist())
