"""The four models stacked from ``spec.block``, plainly, one function a model: from ids or pixels to logits and loss.

A stack decides by itself all that a model decides: which tensors there are, under which saved names, of which shapes,
which module's ΔW belongs to which of them, and what becomes of them. It knows nothing of ``models``; the names are
those of ``transformers``. NumPy and ``spec`` alone; arguments that fit are assumed.

Shapes: b, T, k, f, h, H, K, V as in ``spec.block``; C channels, p the side of a patch, N the number of patches.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import spec

Array = Any
Config = Mapping[str, Any]  # the keys of a config.json, each of them there
Given = Mapping[str, Array]  # ids (b, T), labels, attention_mask (b, T), pixels (b, C, …, …), embeddings (b, T, k)
Results = dict[str, Array]  # "y", the loss (), and "logits"
Weights = tuple[Array, Array | None]  # of a module: weight and bias
Layer = tuple[str, tuple[int, int], bool]  # the saved name of its weight, (out, in), whether it is saved as (in, out)


def named(text: str) -> dict[str, str]:
    """The first word of each part, and what follows it."""
    return {part.split()[0]: part.partition(" ")[2] for part in text.split(", ")}


# The activations of config.json and those of the specification. Then the modules of a block by role; where two names
# stand, the second is the one under which it is saved.
ACTIVATIONS = named("gelu gelu, gelu_new gelu_tanh, gelu_pytorch_tanh gelu_tanh, quick_gelu quick_gelu, silu silu")
GPT2 = named("norm1 ln_1, qkv attn.c_attn, o attn.c_proj, norm2 ln_2, up mlp.c_fc, down mlp.c_proj")
QKV = "q self_attn.q_proj, k self_attn.k_proj, v self_attn.v_proj"
LLAMA = named(
    f"norm1 input_layernorm, {QKV}, o self_attn.o_proj, norm2 post_attention_layernorm, gate mlp.gate_proj, "
    "up mlp.up_proj, down mlp.down_proj"
)
VIT = named(
    "norm1 layernorm_before, q attention.q_proj attention.attention.query, k attention.k_proj attention.attention.key, "
    "v attention.v_proj attention.attention.value, o attention.o_proj attention.output.dense, norm2 layernorm_after, "
    "up mlp.fc1 intermediate.dense, down mlp.fc2 output.dense"
)
CLIP = named(f"norm1 layer_norm1, {QKV}, o self_attn.out_proj, norm2 layer_norm2, up mlp.fc1, down mlp.fc2")


class Tensors(NamedTuple):
    """What a stack reads: ``tensor(name, *shape)`` is what is saved under a name, ``updates`` ΔW (out, in) by module.

    ``modules`` takes down every linear module that is read.
    """

    tensor: Callable[..., Array]
    updates: Mapping[str, Array]
    modules: dict[str, Layer]

    def module(self, name: str, *shape: int, bias: bool = True, saved: str = "", turned: bool = False) -> Weights:
        """(weight, bias or None) of a norm (k,), or W0 + ΔW (out, in), saved as (in, out) if ``turned``, and bias."""
        saved = saved or name
        weight = self.tensor(f"{saved}.weight", *(shape[::-1] if turned else shape))
        if len(shape) == 2:
            self.modules[name] = f"{saved}.weight", (shape[0], shape[1]), turned
            weight = (weight.T if turned else weight) + self.updates.get(name, 0)
        return weight, self.tensor(f"{saved}.bias", shape[0]) if bias else None


def blocks(x: Array, read: Tensors, config: Config, prefix: str, names: Config, seen: Any, unbiased: str = "") -> Array:
    """y (b, T, k) of x (b, T, k) through all blocks; roles in ``unbiased`` have no bias.

    Only Llama's are gated, with RMSNorm and rotary positions; only GPT-2's are fused, with weights saved as (in, out).
    """
    k, f, H = x.shape[-1], config["intermediate_size"], config["num_attention_heads"]
    h, fused, gated = config.get("head_dim") or k // H, "qkv" in names, "gate" in names
    angles = h, config.get("rope_theta", 1.0), config.get("rope_scaling")
    tables = spec.rotary_tables(x.shape[1], *angles, x.dtype) if gated else None  # (T, h/2) each
    kind = spec.BlockKind(h, config["layer_norm_eps"], ACTIVATIONS[config["hidden_act"]], not gated, fused, gated)
    queries, keys = H * h, (config.get("num_key_value_heads") or H) * h
    shapes = {"qkv": (3 * queries, k), "q": (queries, k), "k": (keys, k), "v": (keys, k), "o": (k, queries)}
    shapes |= {"gate": (f, k), "up": (f, k), "down": (k, f)}
    for i in range(config["num_hidden_layers"]):
        parameters = {}
        for role, name in names.items():
            module, saved = (f"{prefix.split()[which]}.{i}.{name.split()[which]}" for which in (0, -1))
            how: Any = {"bias": role not in unbiased.split(), "saved": saved, "turned": fused}
            parameters[role] = read.module(module, *shapes.get(role, (k,)), **how)
        x, _ = spec.block_forward(x, kind, parameters, {}, seen, tables)
    return x


def tokens(read: Tensors, name: str, size: int, k: int, given: Given) -> tuple[Array, Array]:
    """Embeddings (b, T, k), given or looked up in a table (``size``, k), and what each token sees (b or 1, T, T)."""
    table = read.tensor(name, size, k)
    x = given["embeddings"] if "embeddings" in given else table[given["ids"]]
    return x, spec.visible(x.shape[1], True, given.get("attention_mask"))


def next_tokens(x: Array, read: Tensors, config: Config, table: str, labels: Array) -> Results:
    """Logits (b, T, V) of x (b, T, k) by the head, tied to the ``table`` or not; the mean loss of labels (b, T).

    Label t + 1 is foretold at t; −100 does not count.
    """
    saved = table if config["tie_word_embeddings"] else "lm_head"
    logits = spec.linear(x, *read.module("lm_head", config["vocab_size"], x.shape[-1], bias=False, saved=saved))
    rows, following = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    return {"y": spec.cross_entropy(rows, following), "logits": logits}


def gpt2(read: Tensors, config: Config, given: Given) -> Results:
    """Learned positions by place, LayerNorm, q, k and v in one."""
    k, eps = config["n_embd"], config["layer_norm_epsilon"]
    own = {"num_hidden_layers": config["n_layer"], "num_attention_heads": config["n_head"], "layer_norm_eps": eps}
    own |= {"intermediate_size": config["n_inner"] or 4 * k, "hidden_act": config["activation_function"]}
    x, seen = tokens(read, "transformer.wte.weight", config["vocab_size"], k, given)
    x = x + read.tensor("transformer.wpe.weight", config["n_positions"], k)[: x.shape[1]]  # (b, T, k)
    x = blocks(x, read, own, "transformer.h", GPT2, seen)  # (b, T, k)
    x = spec.layer_norm(x, *read.module("transformer.ln_f", k), eps)  # (b, T, k)
    return next_tokens(x, read, config, "transformer.wte", given["labels"])


def llama(read: Tensors, config: Config, given: Given) -> Results:
    """Rotary positions, RMSNorm, grouped keys, a gated MLP, biases where asked for."""
    k, eps = config["hidden_size"], config["rms_norm_eps"]
    x, seen = tokens(read, "model.embed_tokens.weight", config["vocab_size"], k, given)
    unbiased = "norm1 norm2" + " q k v o" * (not config["attention_bias"]) + " gate up down" * (not config["mlp_bias"])
    x = blocks(x, read, {**config, "layer_norm_eps": eps}, "model.layers", LLAMA, seen, unbiased)  # (b, T, k)
    x = spec.rms_norm(x, *read.module("model.norm", k, bias=False), eps)  # (b, T, k)
    return next_tokens(x, read, config, "model.embed_tokens", given["labels"])


def patches(pixels: Array, kernel: Array, bias: Array | None, token: Array, positions: Array) -> Array:
    """x (b, 1 + N, k): the class token, then the patches of pixels (b, C, …, …) row by row; plus positions.

    A patch meets ``kernel`` (k, C, p, p) as in a convolution whose stride is its width.
    """
    k, (b, C, height, width), p = len(kernel), pixels.shape, kernel.shape[-1]
    cut = pixels.reshape(b, C, height // p, p, width // p, p)
    x = np.einsum("bCiujv,kCuv->bijk", cut, kernel).reshape(b, -1, k)  # (b, N, k)
    x = np.concatenate([np.broadcast_to(token, (b, 1, k)), x if bias is None else x + bias], axis=1)
    return x + positions  # (b, 1 + N, k)


def vit(read: Tensors, config: Config, given: Given) -> Results:
    """Patches behind a class token, LayerNorm, a classifier of the token's output; labels (b,), −100 does not count."""
    k, p, name = config["hidden_size"], config["patch_size"], "vit.embeddings"
    kernel = read.module(f"{name}.patch_embeddings.projection", k, config["num_channels"], p, p)
    positions = read.tensor(f"{name}.position_embeddings", 1, 1 + (config["image_size"] // p) ** 2, k)
    x = patches(given["pixels"], *kernel, read.tensor(f"{name}.cls_token", 1, 1, k), positions)  # (b, 1 + N, k)
    x = blocks(x, read, config, "vit.layers vit.encoder.layer", VIT, None, "" if config["qkv_bias"] else "q k v")
    x = spec.layer_norm(x, *read.module("vit.layernorm", k), config["layer_norm_eps"])[:, 0]  # (b, k)
    logits = spec.linear(x, *read.module("classifier", config["num_labels"], k))  # (b, labels)
    return {"y": spec.cross_entropy(logits, given["labels"]), "logits": logits}


def end_of_text(ids: Array, config: Config) -> Array:
    """The place (b,) whose output is the text's: the first end of text, or, where that is 2, the first largest id."""
    end = config["text_config"]["eos_token_id"]
    return np.argmax(ids if end == 2 else ids == end, axis=1)


def clip(read: Tensors, config: Config, given: Given) -> Results:
    """A causal tower of texts, a tower of images with a norm before it; L = ½(cross-entropy by texts + by images)."""
    text, vision, width = config["text_config"], config["vision_config"], config["projection_dim"]
    k, eps, name = text["hidden_size"], text["layer_norm_eps"], "text_model.embeddings"
    x, seen = tokens(read, f"{name}.token_embedding.weight", text["vocab_size"], k, given)
    places = read.tensor(f"{name}.position_embedding.weight", text["max_position_embeddings"], k)
    x = blocks(x + places[: x.shape[1]], read, text, "text_model.encoder.layers", CLIP, seen)  # (b, T, k)
    x = spec.layer_norm(x, *read.module("text_model.final_layer_norm", k), eps)  # (b, T, k)
    x = x[np.arange(len(x)), end_of_text(given["ids"], config)]  # (b, k)
    texts = spec.linear(x, *read.module("text_projection", width, k, bias=False))  # (b, width)
    k, p, eps, name = vision["hidden_size"], vision["patch_size"], vision["layer_norm_eps"], "vision_model.embeddings"
    kernel = read.module(f"{name}.patch_embedding", k, vision["num_channels"], p, p, bias=False)
    places = read.tensor(f"{name}.position_embedding.weight", 1 + (vision["image_size"] // p) ** 2, k)
    x = patches(given["pixels"], *kernel, read.tensor(f"{name}.class_embedding", k), places)  # (b, 1 + N, k)
    x = spec.layer_norm(x, *read.module("vision_model.pre_layrnorm", k), eps)  # (b, 1 + N, k)
    x = blocks(x, read, vision, "vision_model.encoder.layers", CLIP, None)[:, 0]  # (b, k)
    x = spec.layer_norm(x, *read.module("vision_model.post_layernorm", k), eps)  # (b, k)
    images = spec.linear(x, *read.module("visual_projection", width, k, bias=False))  # (b, width)
    texts, images = (x / np.sqrt((x * x).sum(axis=-1, keepdims=True)) for x in (texts, images))
    logits, pairs = np.exp(read.tensor("logit_scale")) * (texts @ images.T), np.arange(len(texts))  # (b, b), (b,)
    return {"y": (spec.cross_entropy(logits, pairs) + spec.cross_entropy(logits.T, pairs)) / 2, "logits": logits}


STACKS: dict[str, Callable[..., Results]] = {"GPT-2": gpt2, "Llama": llama, "ViT": vit, "CLIP": clip}
