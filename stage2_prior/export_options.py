"""What a user can set for the export, as a plain dataclass that needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class ExportOptions:
    """Write a raster-order prior as a plain `LlamaForCausalLM` folder, which inference engines can serve."""

    prior: str
    """Folder or hub id of the prior."""
    output_dir: str
    """Folder to write; an export already there is replaced."""
