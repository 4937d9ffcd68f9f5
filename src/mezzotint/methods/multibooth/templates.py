"""The 27 neutral contexts in which a concept is shown while it is learnt.

Those of Textual Inversion (arXiv 2208.01618, section 3), a subset of CLIP's ImageNet templates (arXiv 2103.00020). `{}`
stands for placeholder and class noun.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["TEMPLATES", "prompts"]

TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)


def prompts(phrase: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """The templates with a phrase such as "<S> dog" in them.

    Raises:
        ValueError: there is no template, or one does not have exactly one `{}`.
    """
    if not templates:
        raise ValueError("templates must not be empty")
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise ValueError(f"a template needs exactly one {{}} for the concept, got {wrong[0]!r}")
    return [template.replace("{}", phrase) for template in templates]
