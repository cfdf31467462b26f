"""The border to other software: PEFT's files, and the installed PEFT as an implementation under test."""

from .peft import PeftAdapter, load_peft, peft_bases, run_peft, save_peft

__all__ = ["PeftAdapter", "load_peft", "peft_bases", "run_peft", "save_peft"]
