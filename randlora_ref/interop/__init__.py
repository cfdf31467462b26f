"""The border to other software: PEFT's adapter folders, safetensors files."""

from .peft import PeftAdapter, PeftLoRA, PeftVeRA, load_peft, save_peft

__all__ = ["PeftAdapter", "PeftLoRA", "PeftVeRA", "load_peft", "save_peft"]
