"""The rules by which a typed function becomes a command line."""

import io
from pathlib import Path
from typing import Any, Literal

import pytest

from mezzotint.cli.forms import argument_help, call, form, parse, summary
from mezzotint.cli.terminal import UsageError


class Result:
    def save(self, path): ...


def generate(
    pipe: Any,
    prompt: str,
    /,
    *tags: str,
    steps: int = 10,
    guidance_scale: float | None = None,
    mode: Literal["fast", "exact"] = "fast",
    clean: Any = None,
    early: bool = True,
    quick: bool = False,
    seeds: tuple[int, ...] = (0, 1),
    where: Path | None = None,
) -> Result:
    """Do the ``task`` on
    two lines.

    More words.

    Args:
        pipe: a pipeline.
        prompt: what to draw,
            on two lines.
        steps: how many.
        early: stop early.

    Returns:
        steps: not an argument.
    """
    return (pipe, prompt, tags, steps, guidance_scale, mode, clean, early, quick, seeds, where)


def measure(*, count: int) -> float:
    """Measure."""
    return float(count)


def ask(words, function=generate, generated=True):
    return parse(form(function, generated=generated), words, prog="mezzotint task")


def test_the_docstring_is_the_only_source_of_help():
    assert summary(generate) == "Do the task on two lines"
    texts = argument_help(generate)
    assert texts["prompt"] == "what to draw, on two lines."
    assert texts["steps"] == "how many."
    assert set(texts) == {"pipe", "prompt", "steps", "early"}


def test_defaults_come_from_the_signature():
    values = ask(["a cube"])
    assert values["prompt"] == "a cube"
    assert (values["steps"], values["guidance_scale"], values["mode"]) == (10, None, "fast")
    assert (values["early"], values["quick"], values["seeds"]) == (True, False, (0, 1))
    assert (values["model"], values["device"], values["dtype"]) == ("scenes", "cpu", "float32")
    assert (values["out"], values["json"]) == (None, False)


def test_words_arrive_as_typed_values():
    words = "a b c --steps 3 --guidance 1.5 --mode exact --no-early --quick --seeds 4 5 6 --where x/y --out z"
    values = ask(words.split())
    assert (values["prompt"], values["tags"]) == ("a", ("b", "c"))
    assert (values["steps"], values["guidance_scale"], values["mode"]) == (3, 1.5, "exact")
    assert (values["early"], values["quick"], values["seeds"]) == (False, True, (4, 5, 6))
    assert (values["where"], values["out"]) == (Path("x/y"), Path("z"))


def test_the_function_gets_what_was_said():
    described = form(generate, generated=True)
    values = ask(["a", "b", "--steps", "3"]) | {"pipe": "PIPE"}
    found = call(described, values)
    assert found == ("PIPE", "a", ("b",), 3, None, "fast", None, True, False, (0, 1), None)


def test_pipe_becomes_model_and_a_saved_result_gets_out():
    described = form(generate, generated=True)
    assert (described.loads, described.needs_model, described.saves) == (True, True, True)
    plain = form(measure, generated=True)
    assert (plain.loads, plain.saves) == (False, False)


def test_an_optional_pipe_is_loaded_only_when_named():
    def name_it(*, pipe: Any = None, steps: int = 1) -> Result: ...

    described = form(name_it, generated=True)
    assert (described.loads, described.needs_model) == (True, False)
    assert ask([], name_it)["model"] is None
    assert ask(["--model", "x"], name_it)["model"] == "x"


def test_what_a_command_line_cannot_spell_keeps_its_default_or_is_a_defect():
    def broken(*, latents: Any, steps: int = 1) -> None: ...

    assert "clean" not in {option.name for option in form(generate, generated=True).options}
    with pytest.raises(TypeError, match="cannot give 'latents'"):
        form(broken, generated=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "--stps", "3"], "there is no option '--stps'; did you mean '--steps'?"),
        (["a", "--steps", "many"], "--steps must be a whole number, got 'many'"),
        (["a", "--guidance", "much"], "--guidance cannot be 'much'"),
        (["a", "--mode", "slow"], "'slow'.*'fast', 'exact'"),
        (["a", "--steps"], "'--steps'"),
        ([], "PROMPT is missing: what to draw, on two lines"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_wrong_words_are_refused_in_one_line(words, said, encoding, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(UsageError, match=said) as refused:
        ask(words)
    assert "\n" not in str(refused.value)
    assert not {"│", "─"} & set(str(refused.value))
    assert "--- " not in str(refused.value)


def test_a_missing_option_is_named():
    with pytest.raises(UsageError, match="--count INT is missing"):
        ask([], measure)


def test_common_options_have_one_spelling():
    def common(*, num_inference_steps: int = 1, guidance_scale: float = 1.0, batch_size: int = 1) -> None: ...

    spelled = {option.spelling for option in form(common, generated=True).options}
    assert spelled == {"steps", "guidance", "batch-size"}
    assert ask(["--batch_size", "3"], common)["batch_size"] == 3


def test_help_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        ask(["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for word in ("--steps INT", "how many.", "(default: 10)", "--no-early", "do not: stop early.", "--model", "--json"):
        assert word in text
    assert "None" not in text
