"""Import checkpoints of other projects; export to MONAI, torch.export and ONNX.

Import `import_checkpoint`, `to_monai`, `to_onnx`, `to_program` from here. The modules: `importing`,
`checkpoint` (opens a pickle in a separate process, `unpickle`), `families` (one file per kind of checkpoint),
`exporting`, `bundle` (a MONAI bundle).
"""

from ctssl.convert.exporting import to_monai as to_monai
from ctssl.convert.exporting import to_onnx as to_onnx
from ctssl.convert.exporting import to_program as to_program
from ctssl.convert.importing import Imported as Imported
from ctssl.convert.importing import import_checkpoint as import_checkpoint
