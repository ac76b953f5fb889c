"""Our Swin against MONAI's on the same weights and input, 96x96x96: `python -m tests.benchmarks.encoders [repeats] [batch]
[--device cuda]`.

Each repeat runs every contestant once, in turn; the medians and their ratios are printed. On a GPU all run in bf16 autocast,
with the largest memory that each took beside its time.
"""

import statistics
import sys

import torch
from monai.networks.nets.swin_unetr import SwinUNETR

from ctssl.encoders.swin import Swin
from ctssl.precision import half
from tests.benchmarks.device import chosen, now, peak_gb
from tests.support.monai_keys import MONAI_SWIN, our_swin_state

DEVICE = chosen()


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
    with torch.no_grad(), half(x.device.type, enabled=x.is_cuda):
        network(x)


def train(network, x) -> None:
    network.zero_grad(set_to_none=True)
    with half(x.device.type, enabled=x.is_cuda):
        maps = network(x)
    sum(m.float().square().mean() for m in maps).backward()


def medians(work, networks: dict, x, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds, and GB on a GPU."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    memory = {}
    for repeat in range(repeats + 1):
        for name, network in networks.items():
            peak_gb(x.device)
            start = now(x.device)
            work(network, x)
            if repeat:  # the first round warms up
                seconds[name].append(now(x.device) - start)
            memory[name] = peak_gb(x.device)
    return {name: statistics.median(values) for name, values in seconds.items()}, memory


def main(repeats: int = 10, batch: int = 1) -> None:
    networks = {name: network.to(DEVICE) for name, network in contestants().items()}
    x = torch.randn(batch, 1, 96, 96, 96, device=DEVICE)
    with torch.no_grad():
        maps = [network.eval()(x) for network in networks.values()]
    for other in maps[:2]:
        worst = max((a - b).abs().max().item() for a, b in zip(other, maps[2], strict=True))
        print(f"largest difference of a feature: {worst:.1e}")
    for title, work in (("forward", forward), ("forward + backward", train)):
        for network in networks.values():
            network.train(work is train)
        found, memory = medians(work, networks, x, repeats)
        for name in ("monai default", "monai flash"):
            print(
                f"{title}: {name} {found[name]:.3f} s, ctssl {found['ctssl']:.3f} s, "
                f"ratio {found[name] / found['ctssl']:.2f}"
                + (f"; {memory[name]:.2f} GB against {memory['ctssl']:.2f} GB" if x.is_cuda else "")
            )


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
