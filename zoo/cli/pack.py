"""`zoo pack`: a bundle's folder as one file, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import click

from ..bundle import open_bundle, pack
from ..errors import OutputError


@click.command("pack")
@click.argument("bundle", type=click.Path())
@click.option("--out", default=None, type=click.Path(), help="The file to write; by default BUNDLE.zoo.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there already.")
def command(bundle: str, out: str | None, overwrite: bool) -> None:
    """Make BUNDLE one .zoo file, every hash proved on the way.

    \b
    Examples:
      zoo pack runs/digits/bundle
      zoo pack runs/digits/bundle --out digits.zoo
    """
    with open_bundle(bundle) as opened:
        target = Path(out) if out else opened.path.with_name(opened.path.resolve().name + ".zoo")
        if target.exists() and not overwrite:
            raise OutputError(f"{target} is there already: choose another --out, or --overwrite")
        pack(opened, target)
    click.echo(f"{target}  {target.stat().st_size / 1e6:.1f} MB")
    click.echo(f"next: zoo run {target} photo.jpg")
