"""The command ``zoo``: a lazy group whose verbs are Command specs, and the one place where errors become lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from .. import __version__
from ..errors import OutputError, ZooError, nearest
from ..specs import Command, install_line

GROUPS = {
    "find": "Find",
    "train": "Fine-tune",
    "export": "Export",
    "prove": "Verify",
    "run": "Run",
    "more": "More",
}

ELSEWHERE = {"export": "zoo_export", "lint": "zoo_export"}
"""Verbs that come with another distribution, so that asking for one that is absent names the cure."""


class ZooGroup(click.Group):
    """Lists and finds verbs in the registry; a verb's module is imported only when that verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from ..registry import get_registry

        return get_registry().names(Command)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from ..registry import get_registry

        registry = get_registry()
        if cmd_name not in registry.names(Command):
            return None
        command = registry.get(Command, cmd_name).resolve()
        if not isinstance(command, click.Command):
            owner = registry.owner(Command, cmd_name).owner
            raise ZooError(f"command '{cmd_name}' of {owner} is not a click.Command")
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None:
            if name in ELSEWHERE:
                ctx.fail(
                    f"'zoo {name}' comes with {ELSEWHERE[name].replace('_', '-')}: {install_line(ELSEWHERE[name])}"
                )
            close = nearest(name, self.list_commands(ctx))
            ctx.fail(f"no such command '{name}'" + (f": did you mean {' or '.join(close)}?" if close else ""))
        return name, command, args[1:]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from ..registry import get_registry

        verbs = [c for c in get_registry().specs(Command) if c.name.startswith(incomplete)]
        # past click.Group, which would import every verb for its short help
        return [CompletionItem(c.name, help=c.summary) for c in verbs] + click.Command.shell_complete(
            self, ctx, incomplete
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ..registry import get_registry

        commands = get_registry().specs(Command)
        width = max(len(c.name) for c in commands)
        for group, title in GROUPS.items():
            rows = [
                (c.name.ljust(width), c.summary)
                for c in commands
                if c.group == group or (group == "more" and c.group not in GROUPS)
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


@click.group(
    cls=ZooGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Shell completion: `zoo --install-completion bash|zsh|fish` prints the line that switches it on.",
)
@click.version_option(__version__, prog_name="zoo")
@click.option(
    "--install-completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    expose_value=False,
    is_eager=True,
    callback=lambda ctx, param, shell: _completion(ctx, shell),
    help="Print the line that switches shell completion on.",
)
def cli() -> None:
    """Vision networks from a plugin to an edge device: find, fine-tune, export, verify, run.

    \b
    zoo list '*net*'                                what there is
    zoo finetune resnet --data photos/              adapt it to your images
    zoo export runs/resnet50 --to onnx --precision fp32,int8 --data photos/
    zoo run resnet50.zoo photo.jpg                  needs no torch
    """


def _completion(ctx: click.Context, shell: str | None) -> None:
    if not shell:
        return
    lines = {
        "bash": "echo 'eval \"$(_ZOO_COMPLETE=bash_source zoo)\"' >> ~/.bashrc",
        "zsh": "echo 'eval \"$(_ZOO_COMPLETE=zsh_source zoo)\"' >> ~/.zshrc",
        "fish": "_ZOO_COMPLETE=fish_source zoo > ~/.config/fish/completions/zoo.fish",
    }
    click.echo(lines[shell])
    ctx.exit()


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point. Exit codes: 0 done, 1 a gate failed, 2 bad input or a missing part, 130 interrupted."""
    sys.exit(execute(args))


def execute(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; every foreseeable error is one line on standard error."""
    try:
        result: Any = cli.main(args=list(args) if args is not None else None, prog_name="zoo", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except ZooError as error:
        return _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # the reader went away (`zoo list | head`): not an error, but Python must not complain at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        said = f" ({error})" if str(error) else ""
        return _fail(f"out of memory{said}: give smaller or fewer images at once; large ones run in tiles (--tile)", 2)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        from pathlib import Path

        from ..files import as_output_error

        return _fail(str(as_output_error(error, Path(str(error.filename or "output")))), OutputError.exit_code)


def _fail(text: str, code: int) -> int:
    click.echo(f"zoo: {text}" if code == 130 else f"zoo: error: {text}", err=True)
    return code
