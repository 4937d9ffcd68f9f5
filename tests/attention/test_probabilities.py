"""Laws of explicit probabilities, of observers and of precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mezzotint.attention import (
    Context,
    KeysValues,
    LogitMask,
    Observe,
    Output,
    Probabilities,
    Record,
    during,
    install,
)
from tests.attention.conftest import CLOSE, Case, normal, refuses, text_mask


def is_float(entry: Any) -> bool:
    return isinstance(entry, Tensor) and entry.is_floating_point()


def test_probabilities_sum_to_one_and_give_the_fused_output(case: Case) -> None:
    shares, states, outputs = Record(), Record(), Record()
    looks = [Observe(shares), Observe(states, of="query_key_value"), Observe(outputs, of="output")]
    with install(case.model, Observe(outputs, of="output")):
        plain = case.run()
        fused = dict(outputs.at())
    with install(case.model, *looks):
        torch.testing.assert_close(case.run(), plain, **CLOSE)
    for name, (seen,) in shares.at().items():
        torch.testing.assert_close(seen.sum(-1), torch.ones_like(seen[..., 0]))
        torch.testing.assert_close(seen @ states.at()[name][2], fused[name][0], **CLOSE)


def test_a_function_of_probabilities_acts_on_the_output(case: Case) -> None:
    outputs = Record()
    scale = Probabilities(lambda call, p: 3 * p, branch="cond")
    tripled = Output(lambda call, output, states: 3 * output, branch="cond")
    with install(case.model, tripled, Observe(outputs, of="output")):
        wanted = case.run()
    with install(case.model, scale):
        torch.testing.assert_close(case.run(), wanted, **CLOSE)
    refuses(case, Probabilities(lambda call, p: p[..., :1]), "gave probabilities")


def test_masked_columns_keep_the_ratios_of_the_others(text_case: Case) -> None:
    """The focus of bound attributes (arXiv 2404.13766): only the masked token's share changes hands."""
    before, after = Record(), Record()
    conditional = {"kind": "cross", "branch": "cond"}
    bias = torch.zeros(7)
    bias[2] = -50.0
    with install(text_case.model, Observe(before, **conditional)):
        text_case.run()
    with install(text_case.model, LogitMask(bias, **conditional), Observe(after, **conditional)):
        text_case.run()
    name = next(iter(before.at()))
    (old,), (new,) = before.at()[name], after.at()[name]
    kept = [0, 1, 3, 4, 5, 6]
    torch.testing.assert_close(new[..., kept], old[..., kept] / old[..., kept].sum(-1, keepdim=True))
    assert new[..., 2].max() < 1e-15


def test_gradients_flow_through_observed_probabilities(text_case: Case) -> None:
    """Attend-and-Excite moves the latent by the gradient of a loss on attention maps."""
    maps = Record()
    latent = text_case.latent.clone().requires_grad_()
    moving = Case(text_case.model, latent, text_case.arguments)
    edits = [Observe(maps, kind="cross", branch="cond"), LogitMask(text_mask, kind="cross")]
    with install(text_case.model, *edits):
        moving.run()
        loss = maps.average((4, 4))[:, 3].amax((1, 2)).sum()
        (gradient,) = torch.autograd.grad(loss, latent)
        assert gradient[2:].abs().amax((1, 2, 3)).min() > 0
        assert torch.equal(gradient[:2], torch.zeros_like(gradient[:2]))
        step = 1e-3
        nudged = latent.detach() + step * gradient / gradient.norm()
        Case(text_case.model, nudged, text_case.arguments).run()
        change = maps.average((4, 4))[:, 3].amax((1, 2)).sum() - loss
        torch.testing.assert_close(change, step * gradient.norm(), rtol=0.1, atol=1e-6)


def test_gradients_flow_through_every_stage(unet: Case) -> None:
    weights = {name: torch.ones((), requires_grad=True) for name in ("context", "states", "mask", "share", "output")}
    edits = [
        Context(lambda call, k, v: (k * weights["context"], v), kind="cross"),
        KeysValues(lambda call, q, k, v: (q, k * weights["states"], v)),
        LogitMask(lambda call, q, k: weights["mask"] * normal(k.shape[2])),
        Probabilities(lambda call, p: p * weights["share"]),
        Output(lambda call, output, states: output * weights["output"]),
    ]
    with install(unet.model, *edits):
        unet.run().square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs() > 0 for weight in weights.values())


def test_a_record_forgets_the_last_pass_or_keeps_the_run(unet: Case) -> None:
    short, long = Record(detach=True), Record(keep="run", detach=True)
    with install(unet.model, Observe(short, kind="cross"), Observe(long, kind="cross", when=during(0, 2))):
        for timestep in (900, 600, 300):
            unet.run(timestep)
        assert (short.steps, long.steps) == ([2], [0, 1])
        old = long.at(0)
        unet.run(900)
        assert (short.steps, long.steps) == ([0], [0])
        assert long.at(0).keys() == old.keys()
    with pytest.raises(ValueError, match="nothing is kept of step 5"):
        short.at(5)


def test_average_maps_share_out_the_attention(unet: Case) -> None:
    maps = Record()
    with install(unet.model, Observe(maps, kind="cross", where=lambda site: site.level == 1)):
        unet.run()
    average = maps.average((4, 4))
    torch.testing.assert_close(average.sum(1), torch.ones(4, 4, 4))
    wanted = torch.stack([seen.mean(1) for (seen,) in maps.at().values()]).mean(0)
    torch.testing.assert_close(average.flatten(2), wanted.transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(case: Case, dtype: torch.dtype) -> None:
    model = case.model.to(dtype)
    arguments = tree_map(lambda entry: entry.to(dtype) if is_float(entry) else entry, case.arguments)
    typed, shares = Case(model, case.latent.to(dtype), arguments), Record()
    plain = typed.run()
    loose = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-10, "atol": 1e-10}
    with install(model, Observe(shares), LogitMask(torch.zeros(1))):
        torch.testing.assert_close(typed.run(), plain, **loose)
    assert all(seen.dtype == torch.promote_types(dtype, torch.float32) for (seen,) in shares.at().values())


def test_autocast_keeps_probabilities_in_single_precision(unet: Case) -> None:
    shares = Record()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = unet.run()
        with install(unet.model, Observe(shares, branch="cond")):
            torch.testing.assert_close(unet.run(), plain, rtol=0.1, atol=0.1)
    for (seen,) in shares.at().values():
        assert seen.dtype == torch.float32
        torch.testing.assert_close(seen.sum(-1), torch.ones_like(seen[..., 0]))
