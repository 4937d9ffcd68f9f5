"""The one attention processor, and how it comes and goes.

While edits are installed, an `EditProcessor` stands in for the processor of every attention layer. A layer without an
active edit calls the processor it replaced with the arguments it was given, so its result is bit-identical; a layer
with edits runs the stages of `edits.py`. The first installation puts the processors there; further ones, nested or not,
add their edits to the same processors, and the last to leave puts the old ones back. Nested installations therefore act
as one with all their edits, outer first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models import attention_processor as stock_processors
from torch import Tensor, nn

from mezzotint.attention.edits import Edit
from mezzotint.attention.heads import merge_heads
from mezzotint.attention.plan import Branches, Installation, Plan, checked_branches
from mezzotint.attention.sites import Site, backbone, located_sites
from mezzotint.attention.stages import EditedPass

EDITABLE = (
    stock_processors.AttnProcessor,
    stock_processors.AttnProcessor2_0,
    stock_processors.FusedAttnProcessor2_0,
    stock_processors.SlicedAttnProcessor,
    stock_processors.XFormersAttnProcessor,
    stock_processors.IPAdapterAttnProcessor,
    stock_processors.IPAdapterAttnProcessor2_0,
    stock_processors.IPAdapterXFormersAttnProcessor,
)


@contextmanager
def install(model_or_pipe: Any, *edits: Edit, branches: Branches | None = None) -> Iterator[Installation]:
    """Edits the attention of a model while the context lasts.

    Rows of a batch are cut into equal runs, one a guidance branch. `branches` names them in order. Left out, they are
    ("uncond", "cond"), as diffusers' pipelines stack them, or ("cond", "uncond") for a DiT, whose pipeline stacks them
    so; a pipeline that says it is not guided (`do_classifier_free_guidance`) has ("cond",), and a guided denoiser of
    `mezzotint.diffusion` says itself what it stacks. Edits of a branch that a pass does not contain rest during it.
    `Installation.passing` changes the names for some passes.

    Steps are counted from the timesteps the model is called with: a changed one is a new step, and one that goes back
    against the direction so far is step 0 of a new trajectory. Reading it waits for the device once a pass.

    A network compiled by its `compile()` runs uncompiled meanwhile, with the same weights; compile it inside the
    context to have everything but the attention layers compiled. With gradient checkpointing, go backward inside the
    context too: layers are run again then.

    Args:
        model_or_pipe: a diffusers pipeline, or its U-Net or transformer.
        *edits: what to do; none is allowed, and changes no bit.
        branches: names of the guidance branches in the order of the batch.

    Yields:
        A handle to name branches, read the step and start anew.

    Raises:
        ValueError: no attention layers are found; an edit matches no site, or a site whose processor is of a class that
            cannot be edited; branch names are repeated, or an edit names a branch that is nowhere declared.
    """
    model = backbone(model_or_pipe)
    plan = _plan_on(model) or Plan(model)
    plan.check(edits, branches)
    _require_editable(plan, edits)
    pipe = None if isinstance(model_or_pipe, nn.Module) else model_or_pipe
    installation = Installation(tuple(edits), checked_branches(branches), pipe, plan)
    if not plan.installations:
        _attach(plan)
    try:
        plan.add(installation)
        yield installation
    finally:
        plan.remove(installation)
        if not plan.installations:
            _detach(plan)


class EditProcessor(nn.Module):
    """Sits on one attention layer while edits are installed on its model.

    A module, so that the weights of a processor underneath (an IP-Adapter's) stay part of the model.
    """

    def __init__(self, site: Site, stock: Any, plan: Plan) -> None:
        super().__init__()
        self.site, self.stock, self.plan = site, stock, plan
        # diffusers reads the signature of `processor.__call__` to decide which keyword arguments a processor is given;
        # the instance shows the signature of the processor underneath, the class does the work.
        self.__dict__["__call__"] = stock.__call__

    # Steps and branches change from pass to pass: traced, each would be compiled anew.
    @torch.compiler.disable
    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's attention: the stock processor's where nothing is edited."""
        edits = self.plan.active(self.site)
        if not edits:
            return self.stock(attention, hidden_states, *args, **kwargs)
        return self._edited(attention, hidden_states, *args, edits=edits, **kwargs)

    def _edited(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        *,
        edits: list[Edit],
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """What diffusers' `AttnProcessor2_0` does around attention, with the edited pass in its place."""
        text, image = encoder_hidden_states, None
        if isinstance(encoder_hidden_states, tuple):
            text, image = encoder_hidden_states
        hidden = hidden_states if attention.spatial_norm is None else attention.spatial_norm(hidden_states, temb)
        hidden = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
        if attention.group_norm is not None:
            hidden = attention.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
        work = EditedPass(attention, self.site, self.plan, edits, hidden=hidden, context=text)
        work.mask_as_model_does(attention_mask)
        output = merge_heads(work.run()).to(work.own.query.dtype)
        if image is not None:
            output = output + _adapter_share(self.stock, attention, merge_heads(work.own.query), image, **kwargs)
        output = attention.to_out[1](attention.to_out[0](output))
        output = output.transpose(-1, -2).reshape(hidden_states.shape) if hidden_states.ndim == 4 else output
        output = output + hidden_states if attention.residual_connection else output
        return output / attention.rescale_output_factor


class _AdapterView:
    """A layer as an IP-Adapter's processor should see it when only the image's share is wanted.

    Text keys and values are one zero token, the query is given, and nothing is done before or after.
    """

    spatial_norm = group_norm = norm_cross = None
    residual_connection, rescale_output_factor = False, 1.0
    to_out = (nn.Identity(), nn.Identity())

    def __init__(self, attention: Any, query: Tensor) -> None:
        self._attention, self._query = attention, query

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)

    def to_q(self, _: Tensor) -> Tensor:
        return self._query

    def to_k(self, _: Tensor) -> Tensor:
        return torch.zeros_like(self._query[:, :1])

    to_v = to_k


def _adapter_share(stock: Any, attention: Any, query: Tensor, image: Any, **extra: Any) -> Tensor:
    """What an IP-Adapter adds to the text's attention, computed by its own processor (arXiv 2308.06721, equation 5)."""
    return stock(_AdapterView(attention, query), query, (query[:, :1], image), **extra)


def _plan_on(model: nn.Module) -> Plan | None:
    for _, layer in located_sites(model):
        if isinstance(layer.processor, EditProcessor):
            return layer.processor.plan
    return None


def _attach(plan: Plan) -> None:
    """Puts the processors there, and sets compiled code aside: it would be compiled anew around every layer."""
    plan.hook = plan.model.register_forward_pre_hook(plan.begin, with_kwargs=True)
    for site, layer in plan.located:
        _put(layer, EditProcessor(site, layer.processor, plan))
    for module in plan.model.modules():
        if module._compiled_call_impl is not None:
            plan.compiled.append((module, module._compiled_call_impl))
            module._compiled_call_impl = None


def _detach(plan: Plan) -> None:
    """Puts the old processors back; one that somebody has put there since is his to remove."""
    plan.hook.remove()
    for _, layer in plan.located:
        if isinstance(layer.processor, EditProcessor) and layer.processor.plan is plan:
            _put(layer, layer.processor.stock)
    for module, compiled in plan.compiled:
        module._compiled_call_impl = module._compiled_call_impl or compiled


def _put(layer: Any, processor: Any) -> None:
    """Sets a processor without diffusers' message that weights might be lost: they are kept, and come back."""
    layer._modules.pop("processor", None)
    layer.__dict__.pop("processor", None)
    layer.processor = processor


def _require_editable(plan: Plan, edits: tuple[Edit, ...]) -> None:
    for site, layer in plan.located:
        stock = layer.processor.stock if isinstance(layer.processor, EditProcessor) else layer.processor
        if type(stock) not in EDITABLE and any(edit.applies_to(site) for edit in edits):
            names = ", ".join(sorted(kind.__name__ for kind in EDITABLE))
            raise ValueError(f"{site.name} has a {type(stock).__name__}, which cannot be edited; these can: {names}")
