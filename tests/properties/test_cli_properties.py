"""Properties of the command line: words in, requests, answers and codes out."""

from __future__ import annotations

import dataclasses
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mezzotint.cli import main
from mezzotint.cli.drawing import contact_sheet, numbered
from mezzotint.cli.forms import argument_help, form, parse
from mezzotint.cli.request import Request
from mezzotint.cli.terminal import UsageError, choose, error, plain

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
WORDS = st.text("abcdefgh-_ '\"\\{}[]%$é☃", min_size=1, max_size=12).filter(lambda text: not text.startswith("-"))


REQUESTS = st.fixed_dictionaries(
    {
        "model": st.text(max_size=8),
        "prompts": st.lists(st.text(max_size=8), min_size=1, max_size=9).map(tuple),
        "seed": st.integers(0, 2**63 - 1),
        "steps": st.integers(1, 10_000),
        "guidance": st.floats(-1e4, 1e4),
        "first": st.integers(0, 2**20),
        "negative": st.text(max_size=8),
        "timesteps": st.lists(st.integers(0, 999), unique=True, max_size=8).map(lambda t: tuple(sorted(t)[::-1])),
        "final": st.sampled_from(["zero", "t_min"]),
        "batch_size": st.integers(1, 5),
        "height": st.none() | st.integers(8, 8192),
        "strict": st.booleans(),
        "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
    }
)


@settings(deadline=None, max_examples=50)
@given(REQUESTS)
def test_a_request_survives_its_picture(fields):
    request = Request(**fields)
    assert Request.from_data(json.loads(json.dumps(request.to_data()))) == request


@settings(deadline=None, max_examples=50)
@given(REQUESTS, st.sampled_from([field.name for field in dataclasses.fields(Request)]), JSON)
def test_foreign_settings_make_a_sound_request_or_a_value_error(fields, name, value):
    request = Request(**fields)
    data = request.to_data() | {name: value}
    try:
        found = Request.from_data(data)
    except ValueError:
        return
    assert Request.from_data(found.to_data()) == found


@settings(deadline=None, max_examples=50)
@given(JSON)
def test_what_is_no_request_is_refused(value):
    with pytest.raises(ValueError, match="request"):
        Request.from_data(value)


@settings(deadline=None, max_examples=50)
@given(REQUESTS)
def test_batches_hold_every_picture_once_and_in_order(fields):
    request = Request(**fields)
    batches = request.batches()
    assert [index for batch in batches for index in batch.indices] == list(request.indices)
    assert tuple(prompt for batch in batches for prompt in batch.prompts) == request.prompts
    assert all(len(batch.prompts) <= (1 if request.strict else request.batch_size) for batch in batches)
    assert all(batch.batches() == [batch] for batch in batches)


@settings(deadline=None, max_examples=50)
@given(REQUESTS, st.integers(0, 8))
def test_strictly_a_picture_asks_for_the_same_alone_or_in_company(fields, number):
    request = Request(**fields | {"strict": True})
    assume(number < len(request.prompts))
    one = dataclasses.replace(request, first=request.first + number, prompts=request.prompts[number : number + 1])
    assert one.batches() == request.batches()[number : number + 1]


@settings(deadline=None, max_examples=50)
@given(WORDS, st.lists(WORDS, max_size=5))
def test_choosing_returns_a_member_or_names_them_all(given_word, allowed):
    if given_word in allowed:
        assert choose(given_word, allowed, "thing") == given_word
    else:
        with pytest.raises(UsageError) as refused:
            choose(given_word, allowed, "thing")
        assert all(word in str(refused.value) for word in allowed)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,7}", fullmatch=True), st.lists(
    st.from_regex(r"[a-z]{1,8}( [a-z]{1,8}){0,3}", fullmatch=True), min_size=1, max_size=3), max_size=4))  # fmt: skip
def test_the_args_section_is_read_whatever_stands_around_it(entries):
    def documented(): ...

    lines = [f"    {name}: {first}" + "".join(f"\n        {more}" for more in rest)
             for name, (first, *rest) in entries.items()]  # fmt: skip
    documented.__doc__ = "\n".join(
        ["Title.", "", "Words: not an argument.", "", "Args:", *lines, "", "Returns:", "    x: y."]
    )
    assert argument_help(documented) == {name: " ".join(texts) for name, texts in entries.items()}


def everything(
    word: str,
    /,
    *,
    whole: int = 0,
    real: float = 0.0,
    mode: Literal["a", "b"] = "a",
    many: tuple[int, ...] = (),
    maybe: float | None = None,
    flag: bool = False,
    on: bool = True,
) -> None:
    """Take everything."""


@settings(deadline=None, max_examples=30)
@given(
    WORDS, st.integers(), st.floats(allow_nan=False), st.sampled_from("ab"), st.lists(st.integers(), max_size=3),
    st.none() | st.floats(allow_nan=False), st.booleans(), st.booleans(),
)  # fmt: skip
def test_values_arrive_as_they_were_said(word, whole, real, mode, many, maybe, flag, on):
    words = [word, "--whole", str(whole), "--real", repr(real), "--mode", mode]
    words += ["--many", *map(str, many)] if many else []
    words += [] if maybe is None else ["--maybe", repr(maybe)]
    words += ["--flag"] * flag + ["--no-on"] * (not on)
    values = parse(form(everything, generated=False), words, prog="mezzotint everything")
    assert values == {
        "word": word, "whole": whole, "real": real, "mode": mode, "many": tuple(many), "maybe": maybe, "flag": flag,
        "on": on, "json": False,
    }  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        WORDS | st.sampled_from(["--help", "--json", "zoo", "list", "path", "show", "--x", "-y", "--"]), max_size=4
    )
)
def test_whatever_is_said_gives_an_answer_or_one_line(words):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    assert code in (0, 2)
    if code == 2 and not out.getvalue():
        assert len(err.getvalue().splitlines()) == 1
        assert err.getvalue().startswith("mezzotint")


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=8), st.text(max_size=60))
def test_an_error_is_one_line(verb, message):
    err = io.StringIO()
    with redirect_stderr(err):
        error(verb, message)
    assert err.getvalue().count("\n") == 1


@settings(deadline=None, max_examples=50)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=5) | st.builds(Path, st.just("a")) | st.builds(object),
                    lambda inner: st.tuples(inner, inner) | st.dictionaries(st.integers(), inner, max_size=2),
                    max_leaves=5))  # fmt: skip
def test_any_result_can_be_printed_as_json_and_is_plain_the_second_time(value):
    once = plain(value)
    assert json.loads(json.dumps(once)) == once
    assert plain(once) == once


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 17), st.integers(1, 9), st.integers(1, 9))
def test_a_contact_sheet_shows_every_picture_once(count, width, height):
    images = [Image.new("RGB", (width, height), (10 * number + 1, 0, 0)) for number in range(count)]
    sheet = contact_sheet(images)
    shown = sorted(colour for amount, colour in sheet.getcolors(maxcolors=4096) if colour[1:] == (0, 0))
    assert shown == [(10 * number + 1, 0, 0) for number in range(count)]
    assert {amount for amount, colour in sheet.getcolors(maxcolors=4096) if colour[1:] == (0, 0)} == {width * height}


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5), st.sets(st.integers(0, 5000), min_size=2, max_size=6))
def test_numbered_files_have_names_of_their_own(total, indices):
    places = {numbered(Path("a/x.png"), index, total) for index in indices}
    assert len(places) == len(indices)
    assert all(place.parent == Path("a") and place.suffix == ".png" for place in places)
