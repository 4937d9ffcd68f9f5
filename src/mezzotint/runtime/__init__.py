"""Make a pipeline fast, steady or strict on this machine, and say what was done: facts, engine, per-item evaluation."""

from __future__ import annotations

from mezzotint.runtime.engine import accelerate
from mezzotint.runtime.environment import Environment, environment
from mezzotint.runtime.plan import Plan, Report, plan
from mezzotint.runtime.steady import steady
from mezzotint.runtime.strict import strict

__all__ = ["Environment", "Plan", "Report", "accelerate", "environment", "plan", "steady", "strict"]
