"""A trained proxy in the layout of an architecture that the transformers library ships: its `config.json` and its tensors.

A proxy with routed experts is an Ernie4_5_Moe model, the one stock architecture that computes what `moe.PackedMoE` does: softmax scores, a bias
for the choice of experts alone, weights normalized over the chosen, shared experts as one layer, and rotation of neighbouring pairs. OLMoE knows
neither the bias nor shared experts. A dense control is a Llama model, whose rotation pairs the halves of a head: its queries and keys are
reordered, which no score notices. The norm after the lookup, which neither has, is folded into the table of the lookup; so the output matrix, which
is the table without it, is stored beside it. The trade-off: the folded table costs one more embedding, and gradients of a fine-tuning are those
of untied embeddings.

Nothing here needs the library, so that a proxy can be exported where it is not installed.

Legend: D model width, E experts, F hidden width of an expert, H heads, C width of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.layers import rms_norm

SMALLEST_TOTAL = 1e-37
"""Ernie4_5_Moe divides by at least this when it normalizes scores over the chosen experts; ours divides by the total, however small. The least
that float32 holds with all its digits, rounded up."""


def transformers_layout(
    config: ProxyConfig, state: Mapping[str, Tensor], window: int, end_id: int | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a folder holds that `AutoModelForCausalLM.from_pretrained` reads: the content of `config.json`, and tensors by name.

    Logits equal those of the proxy but for rounding.

    Args:
        state: `PackedProxy.member_state` of the proxy.
        window: tokens of the windows it was trained on.
        end_id: the token that ends a document; None: not known.
    """
    tensors = {
        "model.embed_tokens.weight": rms_norm(state["embedding"], config.norm_eps),
        "lm_head.weight": state["embedding"],
        "model.norm.weight": state["norm"],
    }
    for layer in range(config.n_layers):
        here = f"layers.{layer}."
        weights = {name.removeprefix(here): tensor for name, tensor in state.items() if name.startswith(here)}
        tensors |= {f"model.{here}{name}": tensor for name, tensor in _layer(config, weights).items()}
    # A copy each: safetensors refuses tensors that share memory.
    return _architecture(config, window, end_id), {name: tensor.to(torch.float32).contiguous().clone() for name, tensor in tensors.items()}


def _layer(config: ProxyConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one layer under their names there; matrices are (outputs, inputs), the transpose of ours."""
    query_DD, key_DD, value_DD = (matrix.T for matrix in weights["attention.qkv"].split(config.d_model, dim=1))
    if not config.n_experts:
        query_DD, key_DD = _halves(query_DD, config.d_head), _halves(key_DD, config.d_head)
    tensors = {
        "input_layernorm.weight": weights["attention.norm"],
        "self_attn.q_proj.weight": query_DD,
        "self_attn.k_proj.weight": key_DD,
        "self_attn.v_proj.weight": value_DD,
        "self_attn.o_proj.weight": weights["attention.output"].T,
        "post_attention_layernorm.weight": weights["moe.norm"],
    }
    if not config.n_experts:
        return tensors | _feed_forward("mlp", weights["moe.shared_in"], weights["moe.shared_out"])
    tensors |= {
        "mlp.gate.weight": weights["moe.router"].T,
        "mlp.moe_statics.e_score_correction_bias": weights["moe.router_bias"][None],
        **_feed_forward("mlp.shared_experts", weights["moe.shared_in"], weights["moe.shared_out"]),
    }
    for expert in range(config.n_experts):
        tensors |= _feed_forward(f"mlp.experts.{expert}", weights["moe.expert_in"][expert], weights["moe.expert_out"][expert])
    return tensors


def _feed_forward(place: str, in_DX: Tensor, out_FD: Tensor) -> dict[str, Tensor]:
    """One SwiGLU, gate and up apart."""
    gate_DF, up_DF = in_DX.chunk(2, dim=1)
    return {f"{place}.gate_proj.weight": gate_DF.T, f"{place}.up_proj.weight": up_DF.T, f"{place}.down_proj.weight": out_FD.T}


def _halves(matrix_XD: Tensor, d_head: int) -> Tensor:
    """Rows of each head reordered from pairs (2c, 2c+1) to pairs (c, c + C/2)."""
    inputs = matrix_XD.shape[1]
    return matrix_XD.reshape(-1, d_head // 2, 2, inputs).transpose(1, 2).reshape(-1, inputs)


def _architecture(config: ProxyConfig, window: int, end_id: int | None) -> dict[str, Any]:
    """The content of `config.json`."""
    shared = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "head_dim": config.d_head,
        "hidden_act": "silu",
        "max_position_embeddings": window,
        "initializer_range": 0.02,
        "rms_norm_eps": config.norm_eps,
        # Since version 5 in `rope_parameters`; before it, and in other programs, beside it.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        # None: a padding token would have no gradient, and the end token, which tokenizers pad with, has one.
        "pad_token_id": None,
        "dtype": "float32",
    }
    if not config.n_experts:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **shared,
            "intermediate_size": config.d_shared,
            "attention_bias": False,
            "mlp_bias": False,
        }
    return {
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "model_type": "ernie4_5_moe",
        **shared,
        "use_bias": False,
        # Of layers without routed experts, of which there are none.
        "intermediate_size": config.d_shared,
        "moe_intermediate_size": config.d_expert,
        "moe_num_experts": config.n_experts,
        "moe_k": config.top_k,
        "moe_num_shared_experts": config.n_shared_experts,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": config.n_layers - 1,
        "moe_layer_interval": 1,
        "moe_norm_min": SMALLEST_TOTAL,
    }
