"""Imports what `vsr` commands need, and reads what they read once, for the process that `tests.forked` forks.

No frame is made here: threads of a library would not survive the fork.
"""

import boto3.s3.transfer
import torch
from PIL import Image

import vsr_hpc.cli.main
import vsr_hpc.cli.progress
import vsr_hpc.engine.platform
import vsr_hpc.engine.upscaler
import vsr_hpc.launch
import vsr_hpc.report.report
import vsr_hpc.storage.s3_store
import vsr_hpc.work.worker
from vsr_hpc.models.cards import find_card
from vsr_hpc.storage.s3_connection import _service_models

LOADED = (boto3, torch, vsr_hpc)

Image.init()
find_card("bicubic")
_service_models().load_service_model("s3", "service-2")
