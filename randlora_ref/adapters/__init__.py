"""Adapters: one base, one file a method. Each is a pure layer with a hand-written backward pass."""

from .ablations import RandLoRAa, randlora_b
from .base import Cache, Factors
from .base import LinearAdapter as Adapter
from .convert import convert
from .full import FullFineTuning, FullGrads
from .lora import LoRA, LoRAGrads
from .nola import NoLA, NoLAGrads
from .orders import contraction_costs
from .randlora import Grads, RandLoRA
from .vera import VeRA, VeRAGrads, vera_bases

__all__ = [
    "Adapter",
    "Cache",
    "Factors",
    "FullFineTuning",
    "FullGrads",
    "Grads",
    "LoRA",
    "LoRAGrads",
    "NoLA",
    "NoLAGrads",
    "RandLoRA",
    "RandLoRAa",
    "VeRA",
    "VeRAGrads",
    "contraction_costs",
    "convert",
    "randlora_b",
    "vera_bases",
]
