"""Whole scans through a model.

Import `embed`, `feature_maps`, `segment`, `probabilities`, `segment_folder`, `Windows` from here. The modules:
`features`, `windows` (sliding windows over a callable), `memory` (planning), `masks` (back onto the scan),
`folder` (many scans, and the record beside each mask), `lesions` (features of lesions), `neighbours` (similar
scans), `ranges` (warn of scans and masks unlike the training cases).
"""

from ctssl.inference.features import embed as embed
from ctssl.inference.features import feature_maps as feature_maps
from ctssl.inference.features import prepared as prepared
from ctssl.inference.features import preprocess as preprocess
from ctssl.inference.folder import segment_folder as segment_folder
from ctssl.inference.folder import write_mask as write_mask
from ctssl.inference.masks import likeliest as likeliest
from ctssl.inference.masks import mask_and_maps as mask_and_maps
from ctssl.inference.masks import onto as onto
from ctssl.inference.masks import probabilities as probabilities
from ctssl.inference.masks import segment as segment
from ctssl.inference.masks import slices_within_memory as slices_within_memory
from ctssl.inference.windows import MEMORY_GB as MEMORY_GB
from ctssl.inference.windows import Windows as Windows
from ctssl.inference.windows import slide as slide
