"""The stages of an edited attention layer, in the order that `edits.py` fixes.

Rows are cut into parts at the borders of the edited guidance branches: rows without a mask go to the fused kernel
without one, and explicit probabilities are formed only for the rows whose edit wants them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.attention.edits import (
    Call,
    Context,
    Edit,
    KeysValues,
    LogitMask,
    Observe,
    Output,
    Probabilities,
    States,
)
from mezzotint.attention.heads import as_bias, fused, padded, probabilities, project_keys_values, project_query
from mezzotint.attention.plan import Plan
from mezzotint.attention.regions import Regions
from mezzotint.attention.sites import Site

AnyEdit = TypeVar("AnyEdit", bound=Edit)


class EditedPass:
    """One call of one layer with edits: the stages of `edits.py`, in their order."""

    def __init__(
        self, attention: Any, site: Site, plan: Plan, edits: list[Edit], *, hidden: Tensor, context: Tensor | None
    ) -> None:
        self.attention, self.site, self.plan, self.edits = attention, site, plan, edits
        self.hidden, self.cross = hidden, context is not None
        self.context = hidden if context is None else context
        self.batch = hidden.shape[0]
        self.own: States
        self.states: States
        self._masks: list[tuple[slice, Tensor]] = []
        self._padding: list[tuple[slice, int, int]] = []
        self._own_biases: list[tuple[slice, Tensor]] = []
        self._biases: list[tuple[slice, Tensor]] = []

    def mask_as_model_does(self, attention_mask: Tensor | None) -> None:
        """Takes the mask that the model passes to its layers (PixArt: padding of the text)."""
        if attention_mask is not None:
            mask = self.attention.prepare_attention_mask(attention_mask, self.context.shape[1], self.batch)
            self._masks = [(slice(0, self.batch), mask.view(self.batch, self.attention.heads, -1, mask.shape[-1]))]

    def run(self) -> Tensor:
        """Output of attention, [batch, heads, queries, head_dim]."""
        key_context, value_context = self._contexts()
        query = project_query(self.attention, self.hidden)
        key, value = project_keys_values(self.attention, key_context, value_context, cross=self.cross)
        self.own = self.states = States(query, key, value, self.attention.scale)
        self._own_biases = list(self._hiding())
        self._edit_keys_values()
        self._collect_biases()
        output = self._mixed(self._attend())
        for edit, rows, call in self._of(Observe):
            if edit.of == "output":
                edit.function(call, output[rows])
        return output

    def _contexts(self) -> tuple[Tensor, Tensor]:
        keys = values = self.context
        for edit, rows, call in self._of(Context):
            new_keys, new_values = edit.function(call, keys[rows], values[rows])
            _require_same_tokens(call, new_keys, new_values, 1)
            if edit.bias is not None:
                self._masks = [*_without(self._masks, rows), (rows, edit.bias[:, None, None])]
            self._note_padding(keys.shape[1], new_keys.shape[1], rows)
            whole = keys is values and new_keys is new_values
            keys = _splice(keys, rows, new_keys, 1)
            values = keys if whole else _splice(values, rows, new_values, 1)
        return keys, values

    def _edit_keys_values(self) -> None:
        for edit, rows, call in self._of(KeysValues):
            states = self.states
            query, key, value = edit.function(call, states.query[rows], states.key[rows], states.value[rows])
            _require_same_tokens(call, key, value, 2)
            if query.shape != states.query[rows].shape:
                raise ValueError(f"{call.site.name}: an edit gave queries {tuple(query.shape)}, not as many as before")
            self._note_padding(states.key.shape[2], key.shape[2], rows)
            query = _splice(states.query, rows, query, 2)
            key, value = _splice(states.key, rows, key, 2), _splice(states.value, rows, value, 2)
            self.states = replace(states, query=query, key=key, value=value)
        for look, rows, call in self._of(Observe):
            if look.of == "query_key_value":
                look.function(call, self.states.query[rows], self.states.key[rows], self.states.value[rows])

    def _hiding(self) -> Iterator[tuple[slice, Tensor]]:
        """Biases that hide what is no key: the model's mask of its text, and filled-up rows."""
        query, keys = self.states.query, self.states.key.shape[2]
        for rows, mask in self._masks:
            if mask.shape[-1] > max(keys, 1):
                raise ValueError(
                    f"{self.site.name}: the model masks {mask.shape[-1]} keys and an edit leaves {keys}; "
                    "give Context(..., bias=...) the mask of its own tokens"
                )
            yield rows, as_bias(mask, query[rows], keys)
        for rows, start, stop in self._padding:
            bias = query.new_zeros(1, 1, 1, keys)
            bias[..., start:stop] = -math.inf
            yield rows, bias

    def _collect_biases(self) -> None:
        """All biases, each with the rows it holds for."""
        query = self.states.query
        self._biases = list(self._hiding())
        for edit, rows, call in self._of(LogitMask):
            resolved = edit.resolve(call, query[rows], self.states.key[rows])
            if resolved is not None:
                self._biases.append((rows, resolved))

    def _attend(self) -> Tensor:
        explicit = self._explicit_rows()
        borders = {0, self.batch, explicit.start, explicit.stop}
        borders.update(border for rows, _ in self._biases for border in (rows.start, rows.stop))
        ordered = sorted(borders)
        parts = [slice(start, stop) for start, stop in itertools.pairwise(ordered)]
        before = [self._fused(part) for part in parts if part.stop <= explicit.start]
        after = [self._fused(part) for part in parts if part.start >= explicit.stop]
        seen = [part for part in parts if explicit.start <= part.start < explicit.stop]
        return _join([*before, *([self._explicit(explicit, seen)] if seen else []), *after])

    def _fused(self, rows: slice) -> Tensor:
        states = self.states
        return fused(
            states.query[rows], states.key[rows], states.value[rows], _sum_of(self._biases, rows), scale=states.scale
        )

    def _explicit(self, explicit: slice, parts: list[slice]) -> Tensor:
        """Stage 4: the softmax formed, changed, seen, and applied to the values."""
        states = self.states
        seen = _join(
            [
                probabilities(states.query[part], states.key[part], _sum_of(self._biases, part), scale=states.scale)
                for part in parts
            ]
        )
        for edit, rows, call in self._of(Probabilities):
            local = _shift(rows, explicit.start)
            changed = edit.function(call, seen[local])
            if changed.shape != seen[local].shape:
                raise ValueError(
                    f"{call.site.name}: an edit gave probabilities {tuple(changed.shape)}, "
                    f"expected {tuple(seen[local].shape)}"
                )
            seen = _splice(seen, local, changed, 3)
        for look, rows, call in self._of(Observe):
            if look.of == "probabilities":
                look.function(call, seen[_shift(rows, explicit.start)])
        return seen.to(states.value.dtype) @ states.value[explicit]

    def _explicit_rows(self) -> slice:
        """The smallest run of rows that holds all whose probabilities somebody wants; empty if nobody does."""
        wanted = [rows for _, rows, _ in self._of(Probabilities)]
        wanted += [rows for edit, rows, _ in self._of(Observe) if edit.of == "probabilities"]
        if not wanted:
            return slice(self.batch, self.batch)
        return slice(min(rows.start for rows in wanted), max(rows.stop for rows in wanted))

    def _mixed(self, output: Tensor) -> Tensor:
        mixers: list[tuple[Regions | Output, slice, Call]] = [*self._of(Regions), *self._of(Output)]
        for edit, rows, call in mixers:
            old = output[rows]
            mixed = edit.mix(call, old, self._states_of(rows))
            if mixed.shape != old.shape:
                raise ValueError(
                    f"{call.site.name}: an edit gave an output {tuple(mixed.shape)}, expected {tuple(old.shape)}"
                )
            output = _splice(output, rows, mixed, 2)
        return output

    def _states_of(self, rows: slice) -> States:
        def cut(states: States, biases: list[tuple[slice, Tensor]]) -> States:
            bias = _sum_of(biases, rows)
            return States(states.query[rows], states.key[rows], states.value[rows], states.scale, bias)

        return replace(cut(self.states, self._biases), own=cut(self.own, self._own_biases))

    def _of(self, kind: type[AnyEdit]) -> Iterator[tuple[AnyEdit, slice, Call]]:
        """Edits of a kind, with their rows and what they are shown."""
        for edit in self.edits:
            rows = self.plan.rows(edit, self.batch) if isinstance(edit, kind) else None
            if isinstance(edit, kind) and rows is not None:
                yield edit, rows, self._call(edit, rows)

    def _call(self, edit: Edit, rows: slice) -> Call:
        return Call(
            site=self.site,
            attention=self.attention,
            moment=self.plan.moment,
            grid=self.plan.grid(self.site, self.hidden.shape[1]),
            branch=edit.branch,
            rows=rows,
            batch=self.batch,
            hidden=self.hidden[rows],
            context=self.context[rows],
            branches=self.plan.branches() if edit.branch is None else (edit.branch,),
        )

    def _note_padding(self, old: int, new: int, rows: slice) -> None:
        """Rows with fewer keys than others are filled up with zeros, which a bias of -inf hides."""
        if any(held.start < rows.stop and rows.start < held.stop for held, _, _ in self._padding):
            raise ValueError(
                f"{self.site.name}: an edit of one guidance branch changed the number of keys, so other rows were "
                "filled up, and a later edit would take the filling for keys; give it a `branch`, or join the two"
            )
        if new < old and rows != slice(0, self.batch):
            self._padding.append((rows, new, old))
        elif new > old:
            others = (slice(0, rows.start), slice(rows.stop, self.batch))
            self._padding += [(other, old, new) for other in others if other.start < other.stop]


def _require_same_tokens(call: Call, keys: Tensor, values: Tensor, dim: int) -> None:
    rows = call.rows.stop - call.rows.start
    if keys.shape[0] != rows or values.shape[0] != rows or keys.shape[dim] != values.shape[dim]:
        raise ValueError(
            f"{call.site.name}: an edit gave keys {tuple(keys.shape)} and values {tuple(values.shape)}; "
            f"both must have {rows} rows and the same number of tokens"
        )


def _splice(whole: Tensor, rows: slice, part: Tensor, dim: int) -> Tensor:
    """`whole` with `part` in place of `rows`; the shorter is filled up with zeros at the end of `dim`."""
    if rows == slice(0, whole.shape[0]):
        return part
    length = max(whole.shape[dim], part.shape[dim])
    return _join([padded(piece, length, dim) for piece in (whole[: rows.start], part, whole[rows.stop :])])


def _join(pieces: list[Tensor]) -> Tensor:
    filled = [piece for piece in pieces if piece.shape[0]]
    return filled[0] if len(filled) == 1 else torch.cat(filled)


def _shift(rows: slice, start: int) -> slice:
    return slice(rows.start - start, rows.stop - start)


def _without(masks: list[tuple[slice, Tensor]], rows: slice) -> list[tuple[slice, Tensor]]:
    """Masks with the given rows taken out."""
    kept = []
    for held, mask in masks:
        before, after = slice(held.start, min(held.stop, rows.start)), slice(max(held.start, rows.stop), held.stop)
        kept += [(rest, _rows_of(mask, held, rest)) for rest in (before, after) if rest.start < rest.stop]
    return kept


def _sum_of(biases: list[tuple[slice, Tensor]], rows: slice) -> Tensor | None:
    """Sum of the biases of these rows; None if there are none."""
    total: Tensor | None = None
    for held, bias in biases:
        if held.start < rows.stop and rows.start < held.stop:
            part = _rows_of(bias, held, rows)
            total = part if total is None else total + part
    return total


def _rows_of(bias: Tensor, held: slice, rows: slice) -> Tensor:
    """The bias of `rows`, of which `held` may cover only some: the others get zeros."""
    inside = slice(max(held.start, rows.start), min(held.stop, rows.stop))
    part = bias if bias.shape[0] == 1 else bias[_shift(inside, held.start)]
    if inside == rows:
        return part
    part = part.expand(inside.stop - inside.start, -1, -1, -1)
    return F.pad(part, (0, 0, 0, 0, 0, 0, inside.start - rows.start, rows.stop - inside.stop))
