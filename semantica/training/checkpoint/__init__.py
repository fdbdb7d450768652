"""Checkpoints of a training: state.py copies and restores, format.py writes and reads files, save.py saves, keep.py deletes,
folders.py finds.

A checkpoint is safetensors for weights, EMA and optimizer, JSON for the rest, and a manifest with the SHA-256 of every file.
"""

from semantica.training.checkpoint.folders import checkpoint_folder, checkpoint_folders
from semantica.training.checkpoint.format import CONFIG, MANIFEST, DamagedCheckpoint
from semantica.training.checkpoint.keep import Keeper
from semantica.training.checkpoint.save import SaveFailure, Saver, Writers, write_checkpoint
from semantica.training.checkpoint.state import Checkpoint, Provenance, TrainState, open_checkpoint

__all__ = [
    "CONFIG",
    "MANIFEST",
    "Checkpoint",
    "DamagedCheckpoint",
    "Keeper",
    "Provenance",
    "SaveFailure",
    "Saver",
    "TrainState",
    "Writers",
    "checkpoint_folder",
    "checkpoint_folders",
    "open_checkpoint",
    "write_checkpoint",
]
