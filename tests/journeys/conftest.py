"""The journeys use the command line as its own tests do."""

from tests.cli.conftest import dit_folder, sd_folder, terminal

__all__ = ["dit_folder", "sd_folder", "terminal"]
