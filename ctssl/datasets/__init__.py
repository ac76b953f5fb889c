"""Labelled scans on disk: find them, check them, divide them. Nothing here loads torch.

Import `Case`, `Dataset`, `find_cases`, `read_case`, `problems` from here. The modules: `case`, `layouts` (every
layout that is known), `manifest` (a CSV), `scans` (a folder of scans or masks), `checks`, `unlike` (cases unlike the
others), `records`, `contacts` and `page` (a report with pictures), `seen` (what a model was trained on), `splits`
(who trains, who is held out).
"""

from ctssl.datasets.case import Case as Case
from ctssl.datasets.case import Dataset as Dataset
from ctssl.datasets.case import read_case as read_case
from ctssl.datasets.checks import Problem as Problem
from ctssl.datasets.checks import check_problems as check_problems
from ctssl.datasets.checks import problems as problems
from ctssl.datasets.checks import survey as survey
from ctssl.datasets.layouts import LAYOUTS as LAYOUTS
from ctssl.datasets.layouts import find_cases as find_cases
from ctssl.datasets.manifest import read_manifest as read_manifest
from ctssl.datasets.scans import list_scans as list_scans
from ctssl.datasets.scans import stem as stem
from ctssl.datasets.seen import SEEN as SEEN
from ctssl.datasets.seen import seen_after as seen_after
from ctssl.datasets.seen import seen_by as seen_by
from ctssl.volume.volume import voxel_hash as voxel_hash
