"""Autocast by the name of a precision."""

from __future__ import annotations

import torch

from mezzotint.runtime.arithmetic import Arithmetic, autocast


def _product(precision: Arithmetic) -> torch.dtype:
    with autocast("cpu", precision):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_bfloat16_is_autocast_and_float32_changes_nothing() -> None:
    assert _product("bfloat16") == torch.bfloat16
    assert _product("float32") == torch.float32
    with autocast("cpu", "bfloat16"):
        assert _product("float32") == torch.float32
