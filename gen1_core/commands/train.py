"""``gen1 train``: the embedded model (tiny), or the full-size one (sd15), by the same loop."""

import argparse

from ..recipes import sd15_train, tiny

PRESETS = {"tiny": tiny.run_from, "sd15": sd15_train.run_from}


def add_train(command: argparse.ArgumentParser) -> None:
    """Options of ``gen1 train``."""
    command.add_argument("--preset", choices=sorted(PRESETS), default="tiny", help="what is trained")
    tiny.add_arguments(command)
    sd15_train.add_arguments(command)
    command.set_defaults(command=train_command)


def train_command(options: argparse.Namespace) -> None:
    """``gen1 train``."""
    if options.dry_run and options.preset != "sd15":
        raise ValueError(f"--dry-run plans the preset sd15, not {options.preset}; add --preset sd15.")
    PRESETS[options.preset](options)
