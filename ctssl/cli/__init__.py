"""The `ctssl` command: parsing and printing only; every command calls a function of the package.

`main` runs one command. One file for each group of commands: `models` (list, info, download, import), `train`
(check, finetune), `choose` (curve, probe), `segment`, `embed`, `judge` (evaluate, compare), `shifts` (shift,
robustness), `export`, `nnunet`; what they share is in `common`.
"""

from ctssl.cli.main import main as main
