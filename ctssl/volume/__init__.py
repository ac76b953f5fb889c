"""Read a scan or a mask, move it between grids, write it. Nothing here loads torch.

Import `Volume`, `read`, `prepare`, `resample`, `working_grid` from here. The modules: `volume` (the record and its
files), `channels` (several images of one scan), `foreign` (images of other libraries), `grids` (resampling), `nifti`
and `dicom` (readers), `dicom_file` (one untrusted DICOM file), `dicom_slices` (the slices of a series in order),
`dicom_masks` (RTSTRUCT and SEG in), `dicom_checks` (whether they belong to a scan), `dicom_seg` (SEG out),
`dicom_rtstruct` (RTSTRUCT out), `contours` (polygons around a mask).
"""

from ctssl.volume.grids import prepare as prepare
from ctssl.volume.grids import resample as resample
from ctssl.volume.grids import working_grid as working_grid
from ctssl.volume.volume import AIR_HU as AIR_HU
from ctssl.volume.volume import Volume as Volume
from ctssl.volume.volume import read as read
from ctssl.volume.volume import voxel_hash as voxel_hash
