"""The `ctssl` command: parsing and printing only; every command calls a function of the package.

`main` runs one command. One file for each group of commands: `models`, `segment`, `train`, `judge`, `shifts`;
what they share is in `common`.
"""

from ctssl.cli.main import main as main
