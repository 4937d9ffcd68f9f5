"""The facts are those of this process and machine."""

import dataclasses
import json
import os
import platform

import torch

from mezzotint.runtime import environment


def test_facts_agree_with_the_process():
    facts = environment()
    assert facts.architecture == platform.machine()
    assert 1 <= facts.cores <= os.cpu_count()
    assert facts.threads == torch.get_num_threads()
    assert len(facts.cuda) == torch.cuda.device_count()


def test_native_bfloat16_needs_an_instruction_for_it():
    facts = environment()
    assert facts.native_bfloat16 == any("bf16" in name for name in facts.isa)
    if hasattr(torch.cpu, "_is_avx512_bf16_supported"):
        assert ("avx512_bf16" in facts.isa) == torch.cpu._is_avx512_bf16_supported()
        assert ("amx_tile" in facts.isa) == torch.cpu._is_amx_tile_supported()


def test_looking_changes_nothing_and_facts_are_plain():
    state = torch.random.get_rng_state()
    first, second = environment(), environment()
    assert first == second
    assert torch.equal(state, torch.random.get_rng_state())
    assert json.loads(json.dumps(dataclasses.asdict(first)))["packages"].keys() >= {"gradio", "openvino"}
