"""Compiled kernels against their torch twins, and sampling against the distribution it promises."""

import pytest
import torch
from torch import Tensor

from engine import cpu_kernels, kernels, twins
from engine.kv import PAGE
from engine.model.mimi import ring_view
from engine.model.transformer import View
from engine.sampling import uniforms

needs_numba = pytest.mark.skipif(not cpu_kernels.enabled(), reason="numba is missing or switched off")


pytestmark = pytest.mark.slow


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_view(groups: int, queries: int, window: int) -> View:
    """Groups at different lengths, the first with a ring that has wrapped."""
    columns = 4
    pages = torch.arange(1, groups * columns + 1).view(groups, columns)
    last = torch.tensor([400, 3, 130, 64])[:groups]
    position = last[:, None] - torch.arange(queries - 1, -1, -1)
    return ring_view(pages, position, position - window)


@needs_numba
@pytest.mark.parametrize(("rows", "dim"), [(1, 128), (7, 512), (3, 30)])
def test_compiled_norm_and_gating_equal_their_twins(rows: int, dim: int) -> None:
    x, alpha = randn(rows, dim) * 3, randn(dim, seed=1)
    torch.testing.assert_close(
        kernels.rms_norm(x, alpha, 1e-8), twins.rms_norm(x, alpha, 1e-8), rtol=1e-5, atol=1e-6
    )
    hidden = randn(rows, 2 * dim) * 20
    torch.testing.assert_close(
        kernels.gated(hidden, "silu"), twins.gated(hidden, "silu"), rtol=1e-5, atol=1e-5
    )


@needs_numba
@pytest.mark.parametrize(("groups", "queries", "window"), [(4, 1, 150), (2, 2, 20), (1, 3, 180)])
@pytest.mark.parametrize("turned", [True, False])
def test_compiled_paged_attention_equals_its_twin(
    groups: int, queries: int, window: int, turned: bool
) -> None:
    view = some_view(groups, queries, window)
    frequencies = torch.rand(8) if turned else None
    results, pools = [], []
    for plan in (kernels._plan_compiled, twins.plan_attention):
        pages = randn(17, PAGE, 2, 4, 16)
        results.append(plan(view, frequencies)(randn(groups * queries, 3, 4, 16, seed=2), pages))
        pools.append(pages)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pools[0], pools[1])


@needs_numba
@pytest.mark.parametrize("step", [0, 1, 7])
def test_compiled_depth_attention_equals_its_twin(step: int) -> None:
    results = []
    for attend in (kernels.attend_depth, twins.attend_depth):
        results.append(attend(randn(5, 3, 4, 16), randn(5, 8, 2, 4, 16, seed=3), step))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@needs_numba
@pytest.mark.parametrize("size", [300, 2048, 4000])
def test_compiled_choice_equals_its_twin_for_mixed_top_k_and_temperatures(size: int) -> None:
    logits = randn(60, size) * 2
    logits[1] = 0.0
    logits[2, 10:] = -1e30
    top_k = torch.tensor([1, 25, 250] * 20)
    inverse = torch.rand(60, generator=torch.Generator().manual_seed(1)) * 3 + 0.2
    number = torch.rand(60, generator=torch.Generator().manual_seed(2))
    ours = kernels.choose(logits, inverse, top_k, number, (1, 25, 250))
    theirs = twins.choose(logits, inverse, top_k, number, (1, 25, 250))
    assert (ours == theirs).float().mean() >= 59 / 60  # a rounding may move one draw to its neighbour
    assert torch.equal(ours[::3], logits[::3].argmax(-1))


def test_few_and_many_candidates_are_drawn_alike() -> None:
    logits, inverse, number = randn(200, 6400), torch.ones(200), torch.linspace(0, 0.999, 200)
    few = twins._choose_few(logits, inverse[:, None], torch.full((200,), 20), number[:, None], 20)
    many = twins.choose(logits[:, :1200], inverse, torch.full((200,), 20), number, (20,))
    assert torch.equal(few, twins.choose(logits, inverse, torch.full((200,), 20), number, (20,)))
    assert ((logits[:, :1200] > logits[:, :1200].gather(1, many[:, None])).sum(1) < 20).all()


def test_draws_follow_the_top_k_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 3.0, -20.0])
    numbers = uniforms(torch.arange(20_000) * 7919, torch.full((20_000,), 3), 2)[:, 1]
    many = logits.expand(20_000, -1).contiguous()
    drawn = kernels.choose(
        many, torch.full((20_000,), 1 / 0.8), torch.full((20_000,), 4), numbers.contiguous(), (4,)
    )
    expected = torch.softmax(torch.where(logits >= 0.5, logits / 0.8, -torch.inf), 0)
    seen = torch.bincount(drawn, minlength=7) / 20_000
    assert (seen - expected).abs().max() < 0.012


def test_the_random_numbers_are_uniform_and_belong_to_seed_frame_and_stream() -> None:
    numbers = uniforms(torch.arange(500), torch.arange(500) % 7, 9)
    assert numbers.shape == (500, 9) and float(numbers.min()) >= 0 and float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 0.5) < 0.02 and abs(float(numbers.std()) - 0.2887) < 0.01
    assert numbers.unique().numel() > 4_400
    assert torch.equal(uniforms(torch.tensor([41]), torch.tensor([6]), 9), numbers[41:42])
    large = uniforms(torch.tensor([2**61 + 5, 2**40 + 5]), torch.tensor([10**6, 10**6]), 9)
    assert not torch.equal(large[0], large[1])
    pairs = torch.stack((numbers[:, :-1].flatten(), numbers[:, 1:].flatten()))
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.06


def test_a_half_precision_pool_holds_what_attention_needs() -> None:
    view = some_view(3, 1, 150)
    exact = twins.plan_attention(view, None)(randn(3, 3, 4, 16), randn(17, PAGE, 2, 4, 16, seed=5))
    for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float8_e4m3fn, 0.2)):
        pages = randn(17, PAGE, 2, 4, 16, seed=5).to(dtype)
        seen = kernels.plan_attention(view, None, pages)(randn(3, 3, 4, 16), pages)
        assert (seen - exact).abs().max() < tolerance
