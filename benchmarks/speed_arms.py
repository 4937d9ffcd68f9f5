"""The arms of `speed.py`: ways to draw pictures of prompts with one pipeline, each as its user would set it up."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

import mezzotint
from mezzotint.diffusion import Sampler, fast_sampler, stream
from mezzotint.loading import embedded, recommended, zoo_path

STUDENTS = {"splam-4": 4, "splam-2": 2, "splam-1": 1}
STEPS = {"newcomer": 50, "teacher": 50, "tuned": 20, "openvino": 20, "ays": 10} | STUDENTS
TITLES = {
    "newcomer": "stock, as it comes: PNDM 50, float32",
    "teacher": "teacher: 50 steps, float32",
    "tuned": "stock, tuned: DPM-Solver++ 20, bfloat16",
    "openvino": "OpenVINO: DPM-Solver++ 20",
    "ays": "mezzotint: AYS 10",
    "splam-4": "mezzotint: SPLAM 4",
    "splam-2": "mezzotint: SPLAM 2",
    "splam-1": "mezzotint: SPLAM 1",
}
STUDENT = "scenes-splam"
NEWCOMER_GUIDANCE = 7.5
"""What `StableDiffusionPipeline` takes when its caller says nothing."""


def missing(name: str, options: Mapping[str, Any]) -> str | None:
    """Why an arm cannot run here; None when it can."""
    if name == "openvino" and importlib.util.find_spec("openvino") is None:
        return "skipped: the package openvino is not installed"
    if name.startswith("splam") and not options.get("sd15") and student_folder(options) is None:
        return f"skipped: there is no {STUDENT} among the embedded models; give --student DIR"
    return None


def student_folder(options: Mapping[str, Any]) -> Path | None:
    """Where the distilled model is: as asked, else in the zoo."""
    if options.get("student"):
        return Path(options["student"])
    return zoo_path(STUDENT) if STUDENT in embedded() else None


def pipeline(options: Mapping[str, Any], dtype: str = "float32") -> Any:
    """The teacher's pipeline, silent."""
    if options.get("sd15"):
        from speed_shapes import sd15_shaped

        pipe = sd15_shaped(dtype=getattr(torch, dtype), tiny=options.get("tiny", False))
    else:
        pipe = mezzotint.load(options["model"], dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guidance(pipe: Any) -> float:
    """What the model's makers recommend."""
    found = recommended(pipe, "guidance_scale")
    return NEWCOMER_GUIDANCE if found is None else float(found)


def stock_scheduler(name: str, pipe: Any) -> Any:
    """What a stock arm samples with; the pipeline's own for all others."""
    import diffusers

    if name == "newcomer":
        # As the scheduler of Stable Diffusion 1.5 is configured.
        return diffusers.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    if name in ("tuned", "openvino"):
        return diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe.scheduler


class Stock:
    """`pipe(prompts)` of diffusers; with `tuned`, everything that is known to make it faster.

    Args:
        options: of the run.
        name: of the arm, which settles the scheduler.
        steps: of sampling.
        scale: of guidance; the recommended one when not given.
        tuned: bfloat16, channels last, and the U-Net compiled where that is faster once compiled.
    """

    ours = False

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        name: str = "teacher",
        steps: int = 50,
        scale: float | None = None,
        tuned: bool = False,
    ) -> None:
        self.options, self.steps, self.tuned = options, steps, tuned
        self.pipe = pipeline(options, "bfloat16" if tuned else "float32")
        self.pipe.scheduler = stock_scheduler(name, self.pipe)
        self.scale = guidance(self.pipe) if scale is None else scale
        self.engine = "eager float32"
        self.extra: dict[str, Any] = {}

    def prepare(self, batch: int, *, side: int | None = None) -> None:
        """Get ready for calls of this many pictures."""
        self.extra = {} if side is None else {"height": side, "width": side}
        if not self.tuned:
            return
        for part in (self.pipe.unet, self.pipe.vae):
            part.to(memory_format=torch.channels_last)
        self.engine = "eager bfloat16, channels last"
        if self.options.get("compile", True):
            self._compile_if_it_pays(batch)

    def draw(self, prompts: Sequence[str], *, first: int = 0) -> Tensor:
        """Pictures in 0..1."""
        generators = [stream(self.options["seed"], "sample", 0, first + k) for k in range(len(prompts))]
        settings = {"num_inference_steps": self.steps, "guidance_scale": self.scale, "output_type": "pt"}
        with torch.inference_mode():
            made = self.pipe(list(prompts), generator=generators, **settings, **self.extra).images
        return made.float().clamp(0, 1)

    def set_steps(self, steps: int) -> None:
        """Sample with another number of steps on the engine there is."""
        self.steps = steps

    def _compile_if_it_pays(self, batch: int) -> None:
        prompts = ["a red cube"] * batch
        self.draw(prompts)
        eager = _seconds(lambda: self.draw(prompts))
        # As TORCHINDUCTOR_FREEZING=1 does: as an option of `compile`, freezing has no effect.
        torch._inductor.config.freezing = True
        self.pipe.unet.compile(options={"cpp.enable_concat_linear": True})
        self.draw(prompts)
        if _seconds(lambda: self.draw(prompts)) < eager:
            self.engine = "compiled bfloat16, weights frozen, channels last"
        else:
            self.pipe.unet._compiled_call_impl = None


class OpenVino(Stock):
    """The U-Net and the decoder converted to OpenVINO, inside the stock pipeline."""

    def prepare(self, batch: int, *, side: int | None = None) -> None:
        """Convert for calls of this many pictures."""
        unet, vae = self.pipe.unet, self.pipe.vae
        height = unet.config.sample_size if side is None else side // self.pipe.vae_scale_factor
        tokens = self.pipe.tokenizer.model_max_length
        x = torch.zeros(2 * batch, unet.config.in_channels, height, height)
        text = torch.zeros(2 * batch, tokens, unet.config.cross_attention_dim)
        calls = _Called(unet, (x, torch.tensor(1.0), text), threads=self.options["threads"])
        decoder = _Called(vae.decoder, (x[:batch],), threads=self.options["threads"])
        unet.forward = lambda sample, t, encoder_hidden_states=None, **_: (
            calls(sample, t.float(), encoder_hidden_states),
        )
        vae.decoder.forward = lambda z, *_: decoder(z)
        self.engine = "OpenVINO, its own choice of precision"


class _Called:
    """A module as a compiled OpenVINO model of fixed shapes."""

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...], *, threads: int) -> None:
        import openvino

        class First(nn.Module):
            """Called by position, returning a tensor."""

            def __init__(self) -> None:
                super().__init__()
                self.module = module

            def forward(self, *args: Tensor) -> Tensor:
                out = self.module(*args)
                return out if isinstance(out, Tensor) else out[0]

        with torch.no_grad():
            converted = openvino.convert_model(First().eval(), example_input=example, input=[a.shape for a in example])
        settings = {"INFERENCE_NUM_THREADS": threads}
        self.model = openvino.Core().compile_model(converted, "CPU", settings)

    def __call__(self, *tensors: Tensor) -> Tensor:
        return torch.from_numpy(self.model([tensor.numpy() for tensor in tensors])[0])


class Fast:
    """Ours: `fast_sampler` on the engine that `runtime` chooses.

    Args:
        options: of the run.
        steps: of sampling.
        distilled: sample the distilled model, without guidance.
        schedule: path of an Align-Your-Steps schedule.
    """

    ours = True

    def __init__(
        self, options: Mapping[str, Any], *, steps: int, distilled: bool = False, schedule: str | None = None
    ) -> None:
        self.options, self.steps = options, steps
        self.schedule, self.running = ExitStack(), ExitStack()
        self.engine = ""
        if distilled:
            self.pipe, self.scale = student(options), 1.0
        else:
            self.pipe = pipeline(options)
            self.scale = guidance(self.pipe)
        if schedule is not None:
            from mezzotint.methods.align_your_steps.schedule import Schedule

            self.schedule.enter_context(Schedule.load(schedule).apply(self.pipe))

    def prepare(self, batch: int, *, side: int | None = None) -> None:
        """Choose the engine for calls of this many pictures."""
        self.running.close()
        size = None if side is None else (side // self.pipe.vae_scale_factor,) * 2
        self.settings: dict[str, Any] = {"guidance_scale": self.scale, "size": size}
        compiled = None if self.options.get("compile", True) else False
        threads = self.options["threads"] if self.options.get("fixed_threads") else None
        engine = {"pictures": self.options["run"], "batch_size": batch, "compiled": compiled, "threads": threads}
        engine["restore"] = not self.options.get("lean", False)
        self.sampler = self.running.enter_context(fast_sampler(self.pipe, steps=self.steps, **engine, **self.settings))
        report = self.sampler.report
        assert report is not None
        self.engine = f"{'compiled' if report.compiled else 'eager'} {report.dtype}, {report.threads} thread(s)"

    def draw(self, prompts: Sequence[str], *, first: int = 0) -> Tensor:
        """Pictures in 0..1."""
        return self.sampler(list(prompts), seed=self.options["seed"], first=first)

    def set_steps(self, steps: int) -> None:
        """Sample with another number of steps on the engine there is."""
        self.sampler = Sampler(self.pipe, steps=steps, **self.settings)


def make(name: str, options: Mapping[str, Any]) -> Any:
    """Build an arm.

    Raises:
        ValueError: there is no such arm.
    """
    if name not in STEPS:
        raise ValueError(f"unknown arm {name!r}; there are {', '.join(STEPS)}")
    fast = {"name": name, "steps": STEPS["tuned"]}
    builders: dict[str, Callable[[], Any]] = {
        "newcomer": lambda: Stock(options, name=name, scale=NEWCOMER_GUIDANCE),
        "teacher": lambda: Stock(options),
        "tuned": lambda: Stock(options, tuned=True, **fast),
        "openvino": lambda: OpenVino(options, **fast),
        "ays": lambda: Fast(options, steps=STEPS[name], schedule=options.get("schedule")),
    }
    builders |= {key: lambda n=n: Fast(options, steps=n, distilled=True) for key, n in STUDENTS.items()}
    return builders[name]()


def student(options: Mapping[str, Any]) -> Any:
    """The distilled pipeline: a folder of its own, or a LoRA fused into the teacher; with an LCM scheduler."""
    from diffusers import LCMScheduler

    if options.get("sd15"):
        pipe = pipeline(options)
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
        return pipe
    folder = student_folder(options)
    assert folder is not None
    if (folder / "model_index.json").is_file():
        pipe = mezzotint.load(folder)
    else:
        pipe = pipeline(options)
        pipe.load_lora_weights(str(folder))
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        pipe.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
