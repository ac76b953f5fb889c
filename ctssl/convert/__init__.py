"""Other people's checkpoints in; MONAI, torch.export and ONNX out.

Import `import_checkpoint`, `to_monai`, `to_onnx`, `to_program` from here. The modules: `importing`,
`checkpoint` (opens a pickle in a process of its own, `unpickle`), `families` (one file for each kind of
checkpoint), `exporting`.
"""

from ctssl.convert.exporting import to_monai as to_monai
from ctssl.convert.exporting import to_onnx as to_onnx
from ctssl.convert.exporting import to_program as to_program
from ctssl.convert.importing import Imported as Imported
from ctssl.convert.importing import import_checkpoint as import_checkpoint
