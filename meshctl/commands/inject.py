"""`meshctl inject` and `meshctl uninject`: what the webhook does, without a cluster."""

import sys
from typing import TextIO

import click
import msgspec

from injector.decision import INJECTION, Inject, Namespace, Object, Refuse, Skip
from injector.patch import decide, remove
from injector.pod import PodError
from injector.values import Values
from manifests.injection import injector_values
from meshctl.context import read_tree, read_values
from meshctl.errors import MeshctlError
from meshctl.manifests_io import MAX_CHARS, ManifestError, changed
from meshctl.workloads import Change, with_pods

_filename = click.option(
    "-f",
    "--filename",
    "source",
    type=click.File(encoding="utf-8"),
    default="-",
    help="File with manifests, - for standard input (the default).",
)


@click.command()
@_filename
@click.option(
    "--values",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="File with the installation's values (YAML), as for `install`.",
)
@click.option(
    "--set", "assignments", multiple=True, metavar="PATH=VALUE", help="Set a value; may be repeated."
)
@click.option("--trust-bundle", type=click.File(encoding="ascii"), help="Roots (PEM) to write into the pods.")
@click.option(
    "-n", "--namespace", default="default", show_default=True, help="Of objects that do not name theirs."
)
def inject(
    source: TextIO,
    files: tuple[str, ...],
    assignments: tuple[str, ...],
    trust_bundle: TextIO | None,
    namespace: str,
) -> None:
    """Add sidecars to manifests, offline.

    Takes YAML or JSON with any number of documents and writes it to standard output. Every Pod and every
    template of pods gets a sidecar, by the same rules as in the cluster; other documents stay as they were
    written, byte for byte. Comments in documents that are changed are lost. What was done is told on
    standard error.
    """
    values = injector_values(read_values(read_tree(files, assignments, {})))
    if trust_bundle is not None:
        values = msgspec.structs.replace(values, trust_bundle=_text(trust_bundle))
    click.echo(_edited(source, _injection(values, namespace)), nl=False)


@click.command()
@_filename
def uninject(source: TextIO) -> None:
    """Take sidecars out of manifests, offline.

    The counterpart of `inject`: takes out what the injector added and puts probes and annotations back.
    """

    def change(pod: Object, title: str, namespace: str | None) -> Object:
        try:
            new = remove(pod)
        except PodError as exc:
            raise ManifestError(f"{title}: {exc}") from None
        _say(title, "nothing to take out" if new is pod else "sidecar taken out")
        return new

    click.echo(_edited(source, change), nl=False)


def _injection(values: Values, default_namespace: str) -> Change:
    def change(pod: Object, title: str, namespace: str | None) -> Object:
        # Who asks for it by hand need not have labelled anything.
        where = Namespace(namespace or default_namespace, {INJECTION: "enabled"})
        decision = decide(pod, where, values)
        match decision:
            case Refuse(reason=reason, message=message):
                raise ManifestError(f"{title}: {reason}: {message}")
            case Skip(reason=reason, message=message):
                _say(title, f"skipped: {reason}: {message}")
                return pod
            case Inject(pod=new, patch=patch, warnings=warnings):
                _say(title, "injected" if patch else "injected already")
                for warning in warnings:
                    _say(title, f"warning: {warning}")
                return new if patch else pod

    return change


def _edited(source: TextIO, change: Change) -> str:
    """The whole result, or none of it. Raises MeshctlError."""
    try:
        return changed(_text(source), lambda found, number: with_pods(found, change, f"document {number}"))
    except ManifestError as exc:
        raise MeshctlError(f"{source.name}: {exc}") from None
    except RecursionError:
        raise MeshctlError(f"{source.name}: an object contains itself, or is nested too deeply") from None


def _text(source: TextIO) -> str:
    try:
        return source.read(MAX_CHARS + 1)
    except UnicodeDecodeError as exc:
        raise MeshctlError(f"{source.name}: not text: {exc.reason} at byte {exc.start}") from None


def _say(title: str, text: str) -> None:
    click.echo(f"{title}: {text}", file=sys.stderr)
