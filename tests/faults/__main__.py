"""A long campaign: `python -m tests.faults --kills 200 --seed 0`."""

import tempfile
import time
from pathlib import Path

import click

from tests.faults.campaign import run


@click.command()
@click.option("--kills", default=200, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    """Kill studies at random moments; prints the account after each study."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run(seed, kills, Path(folder), say=lambda line: click.echo(f"[{time.monotonic() - start:.0f} s] {line}"))


if __name__ == "__main__":
    main()
