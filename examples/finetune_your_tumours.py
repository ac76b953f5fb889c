"""Train a segmenter on your own labels: `python examples/finetune_your_tumours.py DATA OUT [STEPS]`.

DATA holds `images/` and `labels/`; a mask has the name of its scan: NIfTI, 0 is background, 1 is tumour.
"""

import sys

import ctssl


def main(data: str, out: str, steps: str = "600") -> None:
    settings = ctssl.Settings(steps=int(steps), batch=4 if int(steps) > 20 else 1)
    report = ctssl.finetune(data, out=out, hold_out=0.3, settings=settings)
    for case, scores in report.held_out.items():
        print(f"{case}: DSC {scores['tumour']:.3f}")
    print(f"mean {report.mean_dsc:.3f}; the segmenter is in {report.folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
