"""Scenes that several tests look at."""

import pytest
import torch

from mezzotint.worlds import scenes


@pytest.fixture
def one_thread_after():
    """Give the number of threads back after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def some_scenes():
    return scenes.sample(6, seed=3)


@pytest.fixture(scope="session")
def trio():
    """Three objects well apart, each visible as a whole."""
    objects = (
        scenes.Object("cube", "red", x=-1.3, z=0.6, rotation=30.0),
        scenes.Object("sphere", "blue", "small", "shiny", "dotted", x=1.2, z=0.8),
        scenes.Object("torus", "yellow", x=0.3, z=-1.6),
    )
    return scenes.Scene(objects)
