"""GPT-2, Llama, ViT and CLIP with adapters: Hugging Face's weights in, every gradient out, no framework."""

from .adapting import adapt, initial_weights
from .clip import CLIP, CLIPConfig
from .config import Module
from .core import Gradients, Model
from .gpt2 import GPT2, GPT2Config
from .layers import layer_shapes
from .llama import Llama, LlamaConfig
from .vit import ViT, ViTConfig

__all__ = [
    "CLIP", "GPT2", "CLIPConfig", "GPT2Config", "Gradients", "Llama", "LlamaConfig", "Model", "Module", "ViT",
    "ViTConfig", "adapt", "initial_weights", "layer_shapes",
]  # fmt: skip
