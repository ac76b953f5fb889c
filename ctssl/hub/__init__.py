"""From a name to a verified model folder, and back to the Hub. Nothing here loads torch.

Import `open_model`, `find`, `ModelFolder` from here. The modules: `lookup` (name -> folder), `folder` (read,
verify and write one), `config` (what a config.json may contain), `client` (huggingface_hub), `downloads`,
`provenance` (metadata in the header of the weights), `card` (model cards).
"""

from ctssl.hub.client import CONFIG as CONFIG
from ctssl.hub.client import WEIGHTS as WEIGHTS
from ctssl.hub.folder import FORMAT as FORMAT
from ctssl.hub.folder import ModelFolder as ModelFolder
from ctssl.hub.folder import bundled as bundled
from ctssl.hub.folder import open_folder as open_folder
from ctssl.hub.folder import read_config as read_config
from ctssl.hub.lookup import find as find
from ctssl.hub.lookup import open_model as open_model
from ctssl.hub.lookup import open_published as open_published
