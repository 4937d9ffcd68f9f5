"""The loop: what a run is, that it continues exactly, that it never starts over silently, and how it stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mezzotint import files
from mezzotint.training import CheckpointError, Config, NonFiniteError, Step, fit
from tests.training import small


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_an_interrupted_run_continues_bit_for_bit(tmp_path: Path, precision: str, optimiser: str) -> None:
    """Stopped after 5 and 10 of 12 steps with checkpoints every 2: steps 4 to 5 are done again."""
    settings: dict[str, Any] = {"precision": precision, "optimiser": optimiser}
    whole, run = small.train(None, **settings)
    _stopped(tmp_path, 5, **settings)
    _stopped(tmp_path, 10, **settings)
    continued, second = small.train(tmp_path, resume="must", **settings)
    assert small.same(whole, continued)
    assert second.rows == run.rows


def test_a_run_stopped_by_the_clock_continues_bit_for_bit(tmp_path: Path) -> None:
    """A call that is out of time at once takes one step."""
    calls = [small.train(tmp_path, steps=4, stop_after=1e-9, checkpoint_every=100) for _ in range(4)]
    assert [(run.step, run.complete) for _, run in calls] == [(1, False), (2, False), (3, False), (4, True)]
    assert small.same(calls[-1][0], small.train(steps=4)[0])


def test_the_optimiser_can_be_the_caller_s() -> None:
    """Plain gradient descent: w <- w - lr g, with the gradient of w^2 / 2 being w."""
    weight = nn.Parameter(torch.tensor([2.0]))
    config = Config(steps=3, batch_size=1, clip=None, warmup=0)
    fit(
        lambda *_: 0.5 * weight.square().sum(),
        {"w": weight},
        {"x": torch.ones(1)},
        config,
        make_optimiser=lambda named: torch.optim.SGD(named.values(), lr=0.1),
    )
    assert_close(weight.detach(), torch.tensor([2 * 0.9**3]))


def _stopped(folder: Path, steps: int, **settings: Any) -> None:
    """Train the run of 12 steps up to `steps`, then fail in the loss as a killed process would stop."""
    net = small.network()
    loss = small.regression(net)

    def failing(batch: Any, step: Step) -> Any:
        if step.step == steps:
            raise KeyboardInterrupt
        return loss(batch, step)

    with pytest.raises(KeyboardInterrupt):
        fit(failing, net, small.tensors(), small.settings(**settings), folder=folder, progress=False)


def test_training_lowers_the_loss() -> None:
    _, run = small.train(steps=60, warmup=5, log_every=10, accumulation=1)
    assert run.rows[-1]["loss"] < 0.5 * run.rows[0]["loss"]


def test_accumulation_does_not_change_the_run() -> None:
    """The mean of the parts' means is the batch's mean; noise belongs to the item, not to the part."""
    runs = [small.train(net=small.network(plain=True), accumulation=parts) for parts in (1, 2, 8)]
    for state, run in runs[1:]:
        assert_close([row["loss"] for row in run.rows], [row["loss"] for row in runs[0][1].rows])
        for name, value in state.items():
            assert_close(value, runs[0][0][name], rtol=1e-4, atol=1e-5)


def test_one_step_by_hand() -> None:
    """Loss (w - 1)^2 / 2 from w = 3: gradient 2, clipped to 0.5; AdamW's first step is -lr sign(g)."""
    weight = nn.Parameter(torch.tensor([3.0]))
    config = Config(steps=1, batch_size=1, learning_rate=0.1, clip=0.5, weight_decay=0.0, log_every=1)
    run = fit(lambda batch, _: 0.5 * (weight - batch["x"]).square().mean(), {"w": weight}, {"x": torch.ones(1)}, config)
    assert_close(weight.detach(), torch.tensor([2.9]))
    assert run.rows == [{"step": 1, "loss": 2.0, "norm": 2.0, "rate": 1.0}]


def test_only_what_requires_a_gradient_is_trained_and_saved(tmp_path: Path) -> None:
    net = small.network(plain=True)
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    small.train(tmp_path, net=net)
    assert torch.equal(net[0].weight, before)
    saved = files.read_safetensors(tmp_path / "checkpoints" / "step-00000012" / "model.safetensors")
    assert "0.weight" not in saved
    assert "3.weight" in saved


def test_rates_are_per_part() -> None:
    nets = {"slow": small.network(plain=True), "fast": small.network(plain=True)}

    def loss(batch: Any, _: Step) -> Tensor:
        return sum(net(batch["picture"]).square().mean() for net in nets.values())  # type: ignore[return-value]

    fit(loss, nets, small.tensors(), small.settings(rates={"slow": 0.0}), progress=False)
    start = small.network(plain=True).state_dict()
    assert small.same(dict(nets["slow"].state_dict()), dict(start))
    assert not small.same(dict(nets["fast"].state_dict()), dict(start))


def test_the_global_generator_is_neither_used_nor_changed() -> None:
    torch.manual_seed(1)
    first = small.train()[0]
    after = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(99)
    assert small.same(first, small.train()[0])


def test_the_seed_matters() -> None:
    assert not small.same(small.train(seed=1)[0], small.train(seed=2)[0])


def test_held_out_loss_is_of_the_averaged_weights_with_fixed_noise() -> None:
    """With weights that do not move, every measurement gives the same bits."""
    still = {"net": small.network(plain=True), "learning_rate": 1e-30, "weight_decay": 0.0}
    run = small.train(held_out=small.tensors(16), held_out_every=4, **still)[1]
    values = [row["held_out"] for row in run.rows if "held_out" in row]
    assert len(values) == 3
    assert len(set(values)) == 1


def test_watch_sees_averaged_weights_in_eval_mode_and_writes_grids(tmp_path: Path) -> None:
    net = small.network()
    seen: list[Tensor] = []

    def watch(step: int) -> dict[str, Any]:
        assert not net.training
        assert not torch.is_grad_enabled()
        seen.append(net[0].weight.clone())
        return {"picture": torch.rand(5, 3, 6, 6), "step_again": float(step)}

    _, run = small.train(tmp_path, net=net, watch=watch, watch_every=12)
    assert net.training
    assert run.ema is not None
    assert torch.equal(seen[-1], run.ema.average["0.weight"])
    assert not torch.equal(seen[-1], net[0].weight)
    assert run.rows[-1]["step_again"] == 12
    sheet = files.read_image(tmp_path / "samples" / "picture-00000012.png")
    assert sheet.size == (3 * 8 + 2, 2 * 8 + 2)


def test_watching_does_not_change_the_run() -> None:
    watched = small.train(
        watch=lambda _: {"x": torch.rand(())}, watch_every=1, held_out=small.tensors(), held_out_every=1
    )
    assert small.same(watched[0], small.train()[0])


# How runs begin and continue


def test_a_finished_run_is_returned_as_it_is(tmp_path: Path) -> None:
    state, first = small.train(tmp_path)
    again, second = small.train(tmp_path)
    assert small.same(state, again)
    assert (second.step, second.complete, second.rows) == (12, True, first.rows)


def test_never_refuses_a_folder_with_a_run_unless_told(tmp_path: Path) -> None:
    small.train(tmp_path)
    with pytest.raises(CheckpointError, match="already holds a run"):
        small.train(tmp_path, resume="never")
    assert small.train(tmp_path, resume="never", overwrite=True, seed=5)[1].step == 12


def test_must_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        small.train(tmp_path / "typo", resume="must")
    with pytest.raises(ValueError, match="needs a folder"):
        small.train(None, resume="must")


@pytest.mark.parametrize("loss", ["all", "files"])
def test_auto_never_starts_over_where_a_run_was(tmp_path: Path, loss: str) -> None:
    small.train(tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        if loss == "all":
            shutil.rmtree(path)
        else:
            (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not begun over it silently"):
        small.train(tmp_path)
    assert (tmp_path / "log.jsonl").exists()


def test_a_broken_last_checkpoint_costs_steps_but_not_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = small.train()[0]
    small.train(tmp_path)
    (tmp_path / "checkpoints" / "step-00000012" / "optimiser.safetensors").write_bytes(b"x")
    net = small.network()
    run = fit(small.regression(net), net, small.tensors(), small.settings(), folder=tmp_path)
    assert small.same(small.state(net, run), whole)
    told = capsys.readouterr().err
    assert "step-00000012 is broken and is skipped" in told
    assert "from step 10 of 12" in told


def test_other_settings_are_refused_by_name_unless_accepted(tmp_path: Path) -> None:
    small.train(tmp_path, steps=6)
    with pytest.raises(ValueError, match=r"learning_rate: 0.01 -> 0.02.*accept=\('learning_rate',\)"):
        small.train(tmp_path, learning_rate=0.02)
    with pytest.raises(ValueError, match="items: 50 -> 40"):
        small.train(tmp_path, data=small.tensors(40))
    assert small.train(tmp_path, learning_rate=0.02, accept=("learning_rate",))[1].step == 12


def test_another_network_is_refused(tmp_path: Path) -> None:
    small.train(tmp_path, steps=6)
    with pytest.raises(ValueError, match="do not fit the checkpoint"):
        small.train(tmp_path, net=small.network(plain=True))


def test_the_log_of_a_killed_run_loses_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    whole = small.train(log_every=1)[1].rows
    _stopped(tmp_path, 7, log_every=1, checkpoint_every=4)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 8, "lo')
    small.train(tmp_path, log_every=1, checkpoint_every=4)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == whole


def test_tensorboard_holds_the_rows(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, run = small.train(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert_close([event.value for event in events.Scalars("loss")], [row["loss"] for row in run.rows])


# How runs stop


def test_a_bad_item_stops_the_run_with_step_and_layer(tmp_path: Path) -> None:
    data = small.tensors()
    net = small.network(plain=True)

    def loss(batch: Any, step: Step) -> Tensor:
        scale = float("inf") if step.step == 5 else 1.0
        return net(batch["picture"] * scale).square().mean()

    with pytest.raises(NonFiniteError, match=r"loss of step 6 .* first in 0;") as caught:
        fit(loss, net, data, small.settings(), folder=tmp_path, progress=False)
    assert (caught.value.step, caught.value.layer) == (5, "0")
    assert all(torch.isfinite(value).all() for value in net.parameters())
    saved = files.read_safetensors(tmp_path / "checkpoints" / "step-00000005" / "model.safetensors")
    assert small.same(saved, dict(net.state_dict()))


def test_the_layer_is_the_first_that_fails() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.abs().max() - 1).sqrt()

    net = small.network(plain=True)
    net.insert(4, Root())
    with pytest.raises(NonFiniteError) as caught:
        small.train(net=net)
    assert caught.value.layer == "4"


def test_a_loss_that_is_itself_at_fault_is_said_so() -> None:
    net = small.network(plain=True)
    with pytest.raises(NonFiniteError, match="the loss itself"):
        fit(lambda batch, _: net(batch["picture"]).mean() / 0.0, net, small.tensors(), small.settings(), progress=False)


def test_a_bad_gradient_is_named_though_the_loss_is_finite() -> None:
    """d sqrt(x) / dx is infinite at 0."""
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(NonFiniteError, match=r"gradient of step 1 .* first in w;"):
        fit(
            lambda *_: weight.sqrt().sum(),
            {"w": weight},
            small.tensors(),
            small.settings(accumulation=1),
            progress=False,
        )
    assert torch.equal(weight.detach(), torch.zeros(1))


def test_refusals_name_the_cause() -> None:
    net = small.network()
    for value in net.parameters():
        value.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        small.train(net=net)
    net = small.network()
    net[0].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"not finite before the first step: 0.weight"):
        small.train(net=net)
    net = small.network(plain=True)
    with pytest.raises(ValueError, match="single number"):
        fit(lambda b, _: net(b["picture"]), net, small.tensors(), small.settings(), progress=False)
