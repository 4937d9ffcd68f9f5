"""What describes what in a prompt: as the user says, as the scene says, or as a parser finds."""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from mezzotint.worlds.scenes.captions import Caption, Span

from .rule_parser import RuleParser, is_english
from .words import Binding, Constituent, Parser, Syntax, Word

__all__ = ["Named", "syntax_of", "syntax_of_caption", "words_named"]

Named: TypeAlias = str | int | tuple[int, int]
"""A word: as written ("cube", "cube#2" for the second, "teddy bear" for several), by its number, or by characters."""


def syntax_of(
    prompt: str,
    bindings: Any = None,  # pairs of Named; lists from JSON and what is none are told apart below
    parser: Parser | None = None,
) -> Syntax:
    """The structure of a prompt.

    Args:
        prompt: the text.
        bindings: pairs (attribute, noun), which are used as they are; `[]` binds nothing. Of several words that name an
            attribute each is bound; of several that name a noun the last is the noun.
        parser: finds words and phrases, and the bindings where none are given; default `RuleParser()`.

    Raises:
        ValueError: a word is not in the prompt, or there several times and not said which; an attribute is its own
            noun; attributes describe each other in a circle.
    """
    parsed = (RuleParser() if parser is None else parser)(prompt)
    if bindings is None:
        if isinstance(parser, RuleParser | None) and prompt.strip() and not is_english(parsed.words):
            warnings.warn(
                f"no English is recognised in {prompt!r}, so nothing is bound: give bindings=[(attribute, noun), ...]",
                stacklevel=2,
            )
        return parsed
    pairs = {pair for attribute, noun in _named_pairs(bindings) for pair in _pairs(parsed.words, attribute, noun)}
    given = tuple(Binding(attribute, head) for attribute, head in sorted(pairs))
    _require_no_circle(parsed.words, given)
    phrases = parsed.constituents or tuple(_phrases_of(prompt, parsed.words, given))
    return replace(parsed, bindings=given, constituents=phrases)


def _named_pairs(bindings: Any) -> list[tuple[Named, Named]]:
    """The pairs that were given; spans may be lists, as JSON has them.

    Raises:
        ValueError: they are no pairs.
    """
    found = None if isinstance(bindings, (str, Mapping)) else list(bindings)
    if found is None or not all(_is_pair(each) for each in found):
        raise ValueError(
            f"bindings must be pairs (attribute, noun), such as [('red', 'cube')], got {bindings!r}; for several "
            "prompts one such list a prompt"
        )
    return [tuple(tuple(word) if isinstance(word, list) else word for word in pair) for pair in found]  # type: ignore[misc]


def _is_pair(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2


def syntax_of_caption(caption: Caption) -> Syntax:
    """The structure of a world's caption: bindings exactly as the scene has them, phrases by the rules."""
    parsed = RuleParser()(caption.text)
    places = {(word.start, word.end): index for index, word in enumerate(parsed.words)}
    exact = tuple(Binding(_place(places, each.word), _place(places, each.noun)) for each in caption.bindings)
    return replace(parsed, bindings=exact)


def _place(places: dict[tuple[int, int], int], span: Span) -> int:
    return places[span.start, span.end]


def _pairs(words: Sequence[Word], attribute: Named, noun: Named) -> Iterator[tuple[int, int]]:
    head = words_named(words, noun)[-1]
    for index in words_named(words, attribute):
        if index == head:
            raise ValueError(f"{_shown(words, index)} cannot be its own attribute; a binding is (attribute, noun)")
        yield index, head


def words_named(words: Sequence[Word], named: Named) -> tuple[int, ...]:
    """Numbers of the words that a name means, at least one.

    Args:
        words: of the prompt.
        named: what is meant.

    Raises:
        ValueError: it is not in the prompt, or there several times and not said which.
    """
    if isinstance(named, str):
        return _by_text(words, named)
    if isinstance(named, tuple):
        return _by_characters(words, *named)
    if not 0 <= named < len(words):
        raise ValueError(f"word {named} must lie in 0..{len(words) - 1}; {_listed(words)}")
    return (named,)


def _by_text(words: Sequence[Word], named: str) -> tuple[int, ...]:
    found = _occurrences(words, named)
    numbered = re.fullmatch(r"(.+)#([1-9]\d{0,4})", named, re.DOTALL)
    if not found and numbered:
        found = _occurrences(words, numbered[1])
        if len(found) < int(numbered[2]):
            raise ValueError(f"{numbered[1]!r} is in the prompt {len(found)} times, so there is no {named!r}")
        return found[int(numbered[2]) - 1]
    if len(found) > 1:
        candidates = ", ".join(
            f"{named}#{k} (word {span[0]}, characters {words[span[0]].start}-{words[span[-1]].end})"
            for k, span in enumerate(found, 1)
        )
        raise ValueError(f"{named!r} is in the prompt {len(found)} times; say which: {candidates}")
    if not found:
        near = difflib.get_close_matches(named.lower(), [word.text.lower() for word in words], n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"{named!r} is not in the prompt{hint} {_listed(words)}")
    return found[0]


def _occurrences(words: Sequence[Word], named: str) -> list[tuple[int, ...]]:
    wanted = [word.text.lower() for word in RuleParser()(named).words]
    texts = [word.text.lower() for word in words]
    starts = range(len(texts) - len(wanted) + 1) if wanted else range(0)
    return [tuple(range(k, k + len(wanted))) for k in starts if texts[k : k + len(wanted)] == wanted]


def _by_characters(words: Sequence[Word], start: int, end: int) -> tuple[int, ...]:
    found = tuple(index for index, word in enumerate(words) if word.start < end and word.end > start)
    if not 0 <= start < end or not found:
        raise ValueError(f"characters {start}-{end} hold no word; {_listed(words)}")
    return found


def _require_no_circle(words: Sequence[Word], bindings: Sequence[Binding]) -> None:
    heads: dict[int, set[int]] = {}
    for binding in bindings:
        heads.setdefault(binding.attribute, set()).add(binding.head)
    for first in heads:
        reached: set[int] = set()
        new = {first}
        while new:
            new = set().union(*(heads.get(index, set()) for index in new)) - reached
            reached |= new
        if first in reached:
            raise ValueError(f"{_shown(words, first)} describes itself through others; bindings must form no circle")


def _phrases_of(prompt: str, words: Sequence[Word], bindings: Sequence[Binding]) -> Iterator[Constituent]:
    """Where no parser knows the language: each noun with all that is said of it, as it stands in the prompt."""
    members = Counter(binding.head for binding in bindings)
    for head in sorted(members):
        group = [head, *(binding.attribute for binding in bindings if binding.head == head)]
        start, end = words[min(group)].start, words[max(group)].end
        yield Constituent(prompt[start:end], (head,), start, end)


def _shown(words: Sequence[Word], index: int) -> str:
    return f"{words[index].text!r} (word {index})"


def _listed(words: Sequence[Word]) -> str:
    return f"its words: {', '.join(f'{index} {word.text!r}' for index, word in enumerate(words))}"
