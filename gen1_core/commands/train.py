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


DEFAULTS = {"dry_run": False, "held_out": [], "processes": 64, "shards": ":", "data_share": 0.5}
"""Options of one preset alone, as they are where nobody gives them."""


def train_command(options: argparse.Namespace) -> None:
    """``gen1 train``."""
    others = {"tiny": ("dry_run", "held_out", "processes"), "sd15": ("shards", "data_share")}[options.preset]
    for name in others:
        if getattr(options, name) != DEFAULTS[name]:
            raise ValueError(f"--{name.replace('_', '-')} says nothing to the preset {options.preset}; leave it out.")
    PRESETS[options.preset](options)
