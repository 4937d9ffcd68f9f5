"""What holds for every test: annotations are checked, and nothing reaches the network.

The import hook must stand before the first import of mezzotint; jaxtyping then checks shapes and beartype types at
every call. Child processes are not hooked, which keeps start-up budgets honest.
"""

from __future__ import annotations

import socket
import sys
import types
from collections.abc import Iterator

import hypothesis
import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

assert "mezzotint" not in sys.modules, "mezzotint was imported before the type-checking hook"
# An int is a float, as for mypy (PEP 484): beartype has to be told, and the hook takes a module's attribute by name.
house = types.ModuleType("house_typechecker")
house.checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
sys.modules["house_typechecker"] = house
install_import_hook("mezzotint", "house_typechecker.checked")

hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("house")

_connect = socket.socket.connect


def _local_only(self: socket.socket, address: object) -> None:
    host = address[0] if isinstance(address, tuple) else address
    if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
        raise RuntimeError(f"a test reached for the network: {address}")
    _connect(self, address)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Loopback stays open: processes that train together talk over it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _local_only)
        yield
