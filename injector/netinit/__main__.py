"""The command `triomesh-netinit`."""

import sys
from collections.abc import Callable
from typing import Any, cast

import click

from injector.netinit import plan
from injector.netinit.host import NetinitError
from injector.netinit.plan import OptionError, Options

_DEFAULTS = Options()


_Command = Callable[..., Any]


def _setting(name: str, help_text: str, **more: Any) -> Callable[[_Command], _Command]:
    """An option that can also be given as TRIOMESH_<NAME>."""
    variable = "TRIOMESH_" + name.partition("/")[0].upper().replace("-", "_")
    return click.option(f"--{name}", envvar=variable, show_envvar=True, help=help_text, **more)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("action", type=click.Choice(["apply"]), default="apply", required=False)
@_setting("outbound-port", "Port of the sidecar for outbound connections.", type=int, default=15001)
@_setting("inbound-port", "Port of the sidecar for inbound connections.", type=int, default=15006)
@_setting("probe-port", "Port dialled by the check after applying.", type=int, default=15002)
@_setting("proxy-uid", "User id of the sidecar.", type=int, default=_DEFAULTS.proxy_uid)
@_setting("proxy-gid", "Group id of the sidecar.", type=int, default=_DEFAULTS.proxy_gid)
@_setting(
    "include-inbound-ports", "Inbound ports to capture: *, none, or a list such as 80,8000-8010.", default="*"
)
@_setting("exclude-inbound-ports", "Inbound ports not to capture; 15020 and 15021 never are.", default="")
@_setting("include-outbound-ports", "Outbound ports to capture whatever the network.", default="")
@_setting("exclude-outbound-ports", "Outbound ports not to capture.", default="")
@_setting(
    "include-cidrs",
    "Networks to capture: *, none, or a list. A family that the list does not name is captured wholly.",
    default="*",
)
@_setting("exclude-cidrs", "Networks not to capture.", default="")
@_setting("exclude-interfaces", "Interfaces whose connections are not captured.", default="")
@_setting("drop-invalid/--keep-invalid", "Drop TCP packets that conntrack cannot place.", default=True)
@_setting("backend", "iptables back end.", type=click.Choice(["auto", "nft", "legacy"]), default="auto")
@_setting(
    "ipv6",
    "Capture IPv6 as well; auto means if it is on.",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
)
@_setting("netns", "Path of a network namespace to enter first.", type=click.Path(), default=None)
@click.option("--no-ipv6", is_flag=True, help="The same as --ipv6 off.")
@click.option("--no-probe", is_flag=True, help="Do not check with real connections after applying.")
@click.option("--dry-run", is_flag=True, help="Print the iptables-restore text and change nothing.")
@click.option("--cleanup", is_flag=True, help="Remove every rule, chain and address of ours.")
def main(action: str, **given: Any) -> None:
    """Hand this pod's TCP connections to its sidecar.

    Running it again changes nothing; running it with other options replaces the rules in one step. Status 2
    means that it cannot work here (options, programs, capabilities), 1 that the work failed.
    """
    del action  # `apply` is the only one, and the default
    try:
        _run(given)
    except OptionError as error:
        name, _, rest = str(error).partition(":")
        _fail(f"--{name.replace('_', '-')}:{rest}", 2)
    except NetinitError as error:
        _fail(str(error), error.exit_code)


def _run(given: dict[str, Any]) -> None:
    from injector.netinit import apply

    options = _options(given)
    ipv6 = cast("apply.Ipv6Choice", "off" if given["no_ipv6"] else given["ipv6"])
    netns = given["netns"]
    if given["dry_run"]:
        if given["cleanup"]:
            text = apply.describe_cleanup(netns=netns)
        else:
            text = apply.describe(options, ipv6=ipv6, netns=netns)
        click.echo(text, nl=False)
    elif given["cleanup"]:
        apply.cleanup(netns=netns, say=_say)
    else:
        apply.apply(
            options,
            backend=given["backend"],
            ipv6=ipv6,
            check=not given["no_probe"],
            netns=netns,
            say=_say,
            warn=_warn,
        )


def _options(given: dict[str, Any]) -> Options:
    def ports(name: str) -> plan.Ports:
        return plan.parse_ports(given[name], name)

    return Options(
        outbound_port=given["outbound_port"],
        inbound_port=given["inbound_port"],
        probe_port=given["probe_port"],
        proxy_uid=given["proxy_uid"],
        proxy_gid=given["proxy_gid"],
        include_inbound_ports=plan.parse_ports_or_all(
            given["include_inbound_ports"], "include_inbound_ports"
        ),
        exclude_inbound_ports=ports("exclude_inbound_ports"),
        include_outbound_ports=ports("include_outbound_ports"),
        exclude_outbound_ports=ports("exclude_outbound_ports"),
        include_cidrs=plan.parse_cidrs_or_all(given["include_cidrs"], "include_cidrs"),
        exclude_cidrs=plan.parse_cidrs(given["exclude_cidrs"], "exclude_cidrs"),
        exclude_interfaces=plan.parse_names(given["exclude_interfaces"], "exclude_interfaces"),
        drop_invalid=given["drop_invalid"],
    )


def _say(message: str) -> None:
    click.echo(f"triomesh-netinit: {message}")


def _warn(message: str) -> None:
    click.echo(f"triomesh-netinit: warning: {message}", err=True)


def _fail(message: str, status: int) -> None:
    click.echo(f"triomesh-netinit: error: {message}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
