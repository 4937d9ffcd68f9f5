"""What there is: the methods, how to cite them, and what this machine offers."""

from __future__ import annotations

from typing import Any

from mezzotint.cli.terminal import Answer, choose, plain

__all__ = ["cite", "doctor", "methods"]


def _known(given: tuple[str, ...]) -> list[str]:
    from mezzotint.methods import names

    return [choose(name.replace("-", "_"), names(), "method") for name in given] if given else list(names())


def _entry(name: str) -> dict[str, Any]:
    from mezzotint.methods import Door, door

    module = door(name)
    found = Door(name, module, getattr(module, "VERBS", {}))
    return {**plain(found.card), "verbs": list(found.verbs)}


def _long(card: dict[str, Any]) -> str:
    rows = [(key, card[key]) for key in ("claim", "paper", "arxiv", "family", "verbs", "inputs", "outputs")]
    rows += [("composes with", card["composes_with"])]
    told = [f"  {key}: {', '.join(value) if isinstance(value, list) else value}" for key, value in rows if value]
    changes = [f"    - {line}" for line in card["departures"]]
    return "\n".join(
        [f"{card['slug']}: {card['title']}", *told, *(["  differs from the paper:", *changes] if changes else [])]
    )


def methods(*names: str) -> Answer:
    """List the methods, or tell all about some.

    Args:
        names: methods to tell all about; without any, every method gets one line.
    """
    cards = [_entry(name) for name in _known(names)]
    width = max((len(card["slug"]) for card in cards), default=0)
    short = "\n".join(f"{card['slug']:<{width}}  {card['title']}: {card['claim']}" for card in cards)
    return Answer(cards, "\n\n".join(_long(card) for card in cards) if names else short)


def cite(*names: str) -> Answer:
    """Print the BibTeX entries of methods.

    Args:
        names: methods; without any, all of them.
    """
    entries = {name: _entry(name)["bibtex"].strip() for name in _known(names)}
    return Answer(entries, "\n\n".join(entries.values()))


def doctor() -> Answer:
    """Say what this machine offers: processor, accelerators, compiler, optional packages."""
    from mezzotint.cli.pipelines import versions
    from mezzotint.runtime import environment

    facts = {**plain(environment()), "versions": versions()}
    return Answer(facts, _report(facts))


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _report(facts: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in facts.items():
        name = key.replace("_", " ")
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", _report(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {_said(value)}")
    return "\n".join(lines)
