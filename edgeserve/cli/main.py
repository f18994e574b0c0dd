"""`edgeserve`: the command tree, errors to hints and exit codes.

Only the module of the command that is called gets imported, so `edgeserve --help` and the agent stay light.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Final, NamedTuple

import typer

from edgeserve.contracts.errors import EdgeServeError


class Entry(NamedTuple):
    """Where a command lives. The module has `app` (a group of commands) or `command` (one function)."""

    module: str
    help: str


COMMANDS: Final[dict[str, Entry]] = {
    "compile": Entry("edgeserve.cli.compile", "Compile a model for devices and measure what it cost."),
    "inspect": Entry("edgeserve.cli.inspect", "Show what a release contains."),
    "verify": Entry("edgeserve.cli.verify", "Check every byte of a release against its digests."),
    "serve": Entry("edgeserve.cli.serve", "Serve one model or release, without a fleet."),
    "tune": Entry("edgeserve.cli.tune", "Measure how a model is served best on this machine."),
    "infer": Entry("edgeserve.cli.infer", "Send inputs to a model server."),
    "conformance": Entry("edgeserve.cli.conformance", "Hold any server to the Open Inference Protocol v2."),
    "agent": Entry("edgeserve.cli.agent", "Run the agent of a device, or ask it."),
    "devices": Entry("edgeserve.cli.devices", "Device profiles, this machine, and what runs where."),
    "fleet": Entry("edgeserve.cli.fleet", "Run the fleet manager, or ask it."),
    "doctor": Entry("edgeserve.cli.doctor", "Say what is installed, what is missing and what to do."),
    "demo": Entry("edgeserve.cli.demo", "The whole story on one machine."),
}


def build(wanted: str | None) -> typer.Typer:
    """Make the command tree; only the command named `wanted` is imported, the others are known by name and help."""
    root = typer.Typer(
        name="edgeserve",
        help="Compile a model for every device of a fleet, roll it out in waves, serve it, take it back.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    root.callback(help=root.info.help)(_root)
    for name, entry in COMMANDS.items():
        if name != wanted:
            root.command(name, help=entry.help)(_named_only)
            continue
        module = import_module(entry.module)
        if hasattr(module, "app"):
            root.add_typer(module.app, name=name, help=entry.help)
        else:
            root.command(name, help=_long_help(module.command, entry.help))(module.command)
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0, 2 for the user's mistake, 3 trust, 4 accuracy, 1 the rest."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    wanted = next((word for word in argv if not word.startswith("-")), None)
    try:
        build(wanted)(argv, prog_name="edgeserve")
    except EdgeServeError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def print_error(error: EdgeServeError) -> None:
    """Say on stderr what is wrong and what to do."""
    typer.echo(f"error: {error.message}", err=True)
    if error.hint:
        typer.echo(f"hint: {error.hint}", err=True)


def _print_version(asked: bool) -> None:
    if asked:
        from edgeserve import __version__

        typer.echo(f"edgeserve {__version__}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Nothing to do before a command but the options that end the program."""


def _named_only() -> None:
    raise AssertionError("a command that was not imported was called")


def _long_help(command: Callable[..., None], short: str) -> str:
    return command.__doc__ or short
