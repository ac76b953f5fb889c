"""The small Swin, masked image modelling, in the wild. About an hour on two CPU cores.

`python -m training.pretrain swin_wild_mim`, then `python -m training.export swin_wild_mim`.
"""

from training.pretrain import Run

SWIN = dict(width=48, depths=(2, 2, 6), heads=(3, 6, 12), window=4, patch=4, merge_last=False)

run = Run(name="swin-wild-mim", encoder="swin", encoder_args=SWIN, task="mim", corpus="wild", steps=4500)
