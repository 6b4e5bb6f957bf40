"""What every command that talks to a cluster shares: which cluster, and how values are given."""

import functools
from collections.abc import Callable
from typing import Any

import click
import yaml

from manifests.values import Values, ValuesError, override, parse
from meshctl.errors import MeshctlError
from meshctl.kube import connect


def with_kube(command: Callable[..., None]) -> Callable[..., None]:
    """Add --kubeconfig and --context, and hand the connection to the command as `kube`."""

    @functools.wraps(command)
    def connected(*args: Any, kubeconfig: str | None, context: str | None, **kwargs: Any) -> None:
        command(*args, kube=connect(kubeconfig, context), **kwargs)

    return kube_options(connected)


def kube_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --kubeconfig and --context."""
    command = click.option("--context", metavar="NAME", help="Context of the kubeconfig.")(command)
    return click.option("--kubeconfig", metavar="FILE", help="Default: KUBECONFIG, then ~/.kube/config.")(
        command
    )


def values_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add -f and --set."""
    command = click.option(
        "--set", "assignments", multiple=True, metavar="PATH=VALUE", help="Set a value; may be repeated."
    )(command)
    return click.option(
        "-f",
        "--values",
        "files",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False),
        help="File with values (YAML).",
    )(command)


def read_tree(files: tuple[str, ...], assignments: tuple[str, ...], base: dict[str, Any]) -> dict[str, Any]:
    """Values as plain data: `base`, then the files in order, then the assignments.

    Raises:
        MeshctlError: a file that is no mapping in YAML, or a wrong assignment.
    """
    tree = base
    for name in files:
        try:
            with open(name, encoding="utf-8") as file:
                found = yaml.safe_load(file)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            raise MeshctlError(f"{name}: {' '.join(str(exc).split())}") from None
        if found is not None and not isinstance(found, dict):
            raise MeshctlError(f"{name}: expected a mapping of values")
        tree = _over(tree, found or {})
    try:
        return override(tree, assignments)
    except ValuesError as exc:
        raise MeshctlError(str(exc)) from None


def read_values(tree: dict[str, Any]) -> Values:
    try:
        return parse(tree)
    except ValuesError as exc:
        raise MeshctlError(str(exc)) from None


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {k for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **{k: _over(below[k], above[k]) for k in both}}
