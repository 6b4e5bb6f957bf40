"""`meshctl completion`."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script: `source <(meshctl completion bash)`."""
    maker = get_completion_class(shell)
    assert maker is not None  # click has these three
    click.echo(maker(ctx.find_root().command, {}, "meshctl", "_MESHCTL_COMPLETE").source())
