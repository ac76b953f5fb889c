"""Our Swin against MONAI's on the same weights and input, 96x96x96: `python -m tests.benchmarks.encoders [repeats]`.

Each repeat runs every contestant once, in turn; the medians and their ratios are printed.
"""

import statistics
import sys
import time

import torch
from monai.networks.nets.swin_unetr import SwinUNETR

from ctssl.encoders.swin import Swin
from tests.support.monai_keys import MONAI_SWIN, our_swin_state


def contestants() -> dict:
    """Name -> (network, whether it can train): all with the weights of the first."""
    torch.manual_seed(0)
    default = SwinUNETR(in_channels=1, out_channels=2, feature_size=48).swinViT
    for name, parameter in default.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter, std=0.5)
    flash = SwinUNETR(in_channels=1, out_channels=2, feature_size=48, use_flash_attention=True).swinViT
    flash.load_state_dict(default.state_dict())
    ours = Swin(**MONAI_SWIN)
    ours.load_state_dict(our_swin_state(default.state_dict()))
    return {"monai default": default, "monai flash": flash, "ctssl": ours}


def forward(network, x) -> None:
    with torch.no_grad():
        network(x)


def train(network, x) -> None:
    network.zero_grad(set_to_none=True)
    sum(m.float().square().mean() for m in network(x)).backward()


def medians(work, networks: dict, x, repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for repeat in range(repeats + 1):
        for name, network in networks.items():
            start = time.perf_counter()
            work(network, x)
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(repeats: int = 10) -> None:
    networks, x = contestants(), torch.randn(1, 1, 96, 96, 96)
    with torch.no_grad():
        maps = [network.eval()(x) for network in networks.values()]
    for other in maps[:2]:
        worst = max((a - b).abs().max().item() for a, b in zip(other, maps[2], strict=True))
        print(f"largest difference of a feature: {worst:.1e}")
    for title, work in (("forward", forward), ("forward + backward", train)):
        for network in networks.values():
            network.train(work is train)
        found = medians(work, networks, x, repeats)
        for name in ("monai default", "monai flash"):
            print(
                f"{title}: {name} {found[name]:.3f} s, ctssl {found['ctssl']:.3f} s, "
                f"ratio {found[name] / found['ctssl']:.2f}"
            )


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
