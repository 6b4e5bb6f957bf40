"""`meshctl policy`: its commands, and what they share."""

from __future__ import annotations

from collections.abc import Iterable

import click

from mesh_api.policy_values import Problem
from meshctl.errors import MeshctlError
from meshctl.main import Commands

LOADED = {
    "apply": ("meshctl.commands.policy_files:apply", "Check policies from files, then bring them in."),
    "delete": ("meshctl.commands.policy_files:delete", "Remove the policy of a Service."),
    "explain": ("meshctl.commands.policy_explain:explain", "Show what holds for a Service, and who says so."),
    "get": ("meshctl.commands.policy_get:get", "List policies and whether they are in force."),
    "set": ("meshctl.commands.policy_set:set_", "Change the policy of a Service."),
    "test": ("meshctl.commands.policy_test:test", "Say what would happen to a request, offline."),
}


@click.group(cls=Commands, loaded=LOADED)
def policy() -> None:
    """Manage traffic policies."""


def refused(what: str, problems: Iterable[Problem]) -> MeshctlError:
    """The error for a policy that is not legal: one problem a line."""
    lines = [str(one) for one in problems]
    return MeshctlError(f"{what}: {lines[0]}" if len(lines) == 1 else "\n  ".join((f"{what}:", *lines)))
