"""The border to other software: PEFT's adapter folders."""

from .peft import PeftAdapter, load_peft, save_peft

__all__ = ["PeftAdapter", "load_peft", "save_peft"]
