"""The longer commands of ``gen1``, a file each; cli.py has the short ones."""
