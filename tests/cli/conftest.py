"""Real pipelines of tiny size in folders, as `save_pretrained` leaves them, and a way to run the command line."""

import json
import string

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mezzotint.cli import main

WIDTH = 16


def levels():
    return DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                         set_alpha_to_one=False, steps_offset=1)  # fmt: skip


def vae():
    return AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, sample_size=16, latent_channels=4,
                         down_block_types=("DownEncoderBlock2D",) * 2,
                         up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip


def stable_diffusion():
    torch.manual_seed(0)
    letters = string.ascii_lowercase
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=24)
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
                          num_attention_heads=2, max_position_embeddings=24, projection_dim=WIDTH,
                          eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
                          pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
                                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                                cross_attention_dim=WIDTH, attention_head_dim=8)  # fmt: skip
    return StableDiffusionPipeline(vae=vae(), text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
                                   scheduler=levels(), safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False)  # fmt: skip


def class_conditional():
    torch.manual_seed(1)
    network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
                                    num_layers=2, sample_size=8, patch_size=2, num_embeds_ada_norm=1000)  # fmt: skip
    with torch.no_grad():  # a fresh DiT is the zero function
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return DiTPipeline(network, vae(), levels())


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-dit"
    class_conditional().save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {"0": "red cube, red box", "1": "blue sphere"}  # where published DiT checkpoints have it
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


class Terminal:
    """Runs the command line in this process; `out` and `err` are what the last command printed."""

    def __init__(self, capsys):
        self.capsys, self.out, self.err = capsys, "", ""

    def __call__(self, *words, code=0):
        self.capsys.readouterr()
        found = main([str(word) for word in words])
        self.out, self.err = self.capsys.readouterr()
        assert found == code, f"exit code {found}, wanted {code}:\n{self.out}\n{self.err}"
        return self.out

    def json(self, *words, code=0):
        return json.loads(self(*words, "--json", code=code))

    def refused(self, *words, code=2):
        """Run something that must be refused: nothing on stdout, one line on stderr, which is returned."""
        assert self(*words, code=code) == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("mezzotint")
        return lines[0]


@pytest.fixture
def terminal(capsys):
    return Terminal(capsys)
