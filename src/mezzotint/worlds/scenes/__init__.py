"""A world of simple solids on a floor: pictures, captions and everything there is to know about them.

`sample` draws scenes, `render` makes pictures with exact ground truth, `caption` and `graph` describe them, the edits
change them, `orbit` looks from elsewhere, and `export` writes data sets.
"""

from __future__ import annotations

from mezzotint.worlds.scenes.captions import STYLES, Binding, Caption, Span, Style, caption
from mezzotint.worlds.scenes.edits import add, edit, move, orbit, recolour, relight, remove, swap
from mezzotint.worlds.scenes.export import DEPTH_SCALE, export
from mezzotint.worlds.scenes.gallery import depth_colours, gallery, instance_colours, normal_colours, sheet
from mezzotint.worlds.scenes.graph import Node, SceneGraph, graph
from mezzotint.worlds.scenes.render import FLOOR, SKY, Frame, picture, render
from mezzotint.worlds.scenes.sampling import allowed_pairs, sample
from mezzotint.worlds.scenes.scene import Camera, Light, Object, Scene
from mezzotint.worlds.scenes.views import Reprojection, project, reproject, silhouettes, unproject
from mezzotint.worlds.scenes.vocabulary import COLOURS, FLOORS, HELD_OUT, MATERIALS, PATTERNS, SHAPES, SIZES, SKIES

__all__ = [
    "COLOURS",
    "DEPTH_SCALE",
    "FLOOR",
    "FLOORS",
    "HELD_OUT",
    "MATERIALS",
    "PATTERNS",
    "SHAPES",
    "SIZES",
    "SKIES",
    "SKY",
    "STYLES",
    "Binding",
    "Camera",
    "Caption",
    "Frame",
    "Light",
    "Node",
    "Object",
    "Reprojection",
    "Scene",
    "SceneGraph",
    "Span",
    "Style",
    "add",
    "allowed_pairs",
    "caption",
    "depth_colours",
    "edit",
    "export",
    "gallery",
    "graph",
    "instance_colours",
    "move",
    "normal_colours",
    "orbit",
    "picture",
    "project",
    "recolour",
    "relight",
    "remove",
    "render",
    "reproject",
    "sample",
    "sheet",
    "silhouettes",
    "swap",
    "unproject",
]
