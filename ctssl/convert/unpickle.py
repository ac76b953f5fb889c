"""The only place where a pickle is opened: a program that runs in a separate process (see
`ctssl.convert.checkpoint`).

`python -I unpickle.py FILE OUT SETTINGS` reads the tensors of a checkpoint (`weights_only=True`) and writes
them to OUT as safetensors; the key of a tensor is its path through the containers,
`state_dict/module.norm.weight`. It prints one JSON object: `{"skipped": {container: number of tensors}}` or
`{"error": message}`. It imports nothing from ctssl.
"""

import argparse
import json
import re
import sys
from typing import Any

OPTIMIZERS = re.compile(r"optim|sched|scaler")  # containers of tensors that are not weights


def main(file: str, out: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Read the checkpoint, write the tensors, and return the JSON object to print."""
    sys.path += settings["paths"]
    import numpy as np
    import torch
    from safetensors.torch import save_file

    _limit(settings)
    # constructor of numpy scalars: trainers save a score next to the weights
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(t)) for t in ("f8", "f4", "i8")]
    named = [(scalar, f"{home}.multiarray.scalar") for home in ("numpy.core", "numpy._core")]
    harmless: list[Any] = [argparse.Namespace, np.dtype, *kinds, *named]  # none of them runs code
    torch.serialization.add_safe_globals(harmless)
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # the file can make torch raise anything
        return {"error": _words(error)}
    tensors: dict[str, torch.Tensor] = {}
    skipped: dict[str, int] = {}
    try:
        _walk(content, "", tensors, skipped)
        declared = sum(t.numel() * t.element_size() for t in tensors.values())
        if declared > settings["ceiling"]:
            return {"error": f"its tensors declare {declared} bytes, more than the file can hold"}
        save_file({key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}, out)
    except (RuntimeError, ValueError, NotImplementedError, MemoryError, OSError) as error:
        return {"error": f"its tensors cannot be read ({type(error).__name__}: {str(error)[:200]})"}
    return {"skipped": skipped}


def _limit(settings: dict[str, Any]) -> None:
    """Limit memory and processor time from here on, where the system supports it."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as status:  # what torch itself has mapped is allowed
            mapped = int(status.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + settings["memory"],) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (settings["seconds"],) * 2)
    except (ImportError, OSError, ValueError):
        pass


def _walk(value: Any, path: str, tensors: dict[str, Any], skipped: dict[str, int], depth: int = 0) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError(f"{path} is a sparse, quantized or data-less (meta) tensor")
        if path in tensors:
            raise ValueError(f"two tensors are called {path}")
        tensors[path] = value
    elif isinstance(value, dict) and depth < 6 and all(isinstance(key, str) for key in value):
        for key, inner in value.items():
            way = f"{path}/{key}" if path else key
            if depth == 0 and OPTIMIZERS.search(key.lower()) and not isinstance(inner, torch.Tensor):
                skipped[way] = _count(inner)
            else:
                _walk(inner, way, tensors, skipped, depth + 1)
    elif count := _count(value):  # lists and dictionaries with numbers as keys: not a state dict
        skipped[path] = count


def _count(value: Any) -> int:
    """Count tensors anywhere inside, without recursion: a pickle may nest without end, or contain itself."""
    import torch

    left, seen, count = [value], set(), 0
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        count += isinstance(item, torch.Tensor)
        left += item.values() if isinstance(item, dict) else item if isinstance(item, (list, tuple)) else ()
    return count


def _words(error: Exception) -> str:
    text = str(error)
    asked = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|class) ([\w.]+)", text)
    if type(error).__name__ == "UnpicklingError" and asked:
        return f"it holds more than tensors: it asks for {asked[1]}, which could run code when opened"
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return "opening it takes more memory than a file of its size should need"
    first = text.splitlines()[0][:160] if text else "-"
    return f"it is damaged or not a PyTorch checkpoint ({type(error).__name__}: {first})"


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
