"""CLIP's image encoder with a mixture of low-rank experts around its MLPs, by itself and as the eyes of Llava and
LlavaNext. MoVE-KD students are exported in this form.

This one file lies beside the weights and is what `trust_remote_code=True` runs. It needs torch and transformers only.
T images, N patches, D width in, O width out, E experts, R rank.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


class ClipMoleVisionConfig(CLIPVisionConfig):
    """CLIP's configuration and the experts'.

    num_expert_layers: the first so many layers have experts. expert_scale: factor of an expert's branch.
    expert_gate: `top1` adds the chosen expert; `top1_ste` is equal in value and teaches the router; `top1_prob` scales
    the chosen one by its probability; `soft` and `dense` mix all experts by probability.
    """

    model_type = "clip_mole_vision_model"

    num_experts: int = 3
    expert_rank: int = 32
    expert_scale: float = 1.0
    expert_gate: str = "top1"
    expert_dropout: float = 0.0
    num_expert_layers: int = 12


def gate_of(kind: str, probs: Tensor) -> Tensor:
    """Each expert's factor (T, N, E) from the router's probabilities (T, N, E)."""
    if kind in ("soft", "dense"):
        return probs
    chosen = torch.zeros_like(probs).scatter(-1, probs.detach().argmax(-1, keepdim=True), 1.0)
    if kind == "top1_ste":
        return chosen + (probs - probs.detach())
    return chosen * probs if kind == "top1_prob" else chosen


class ClipMoleExperts(nn.Module):
    """One low-rank branch per expert: reduce_weight (E, R, D), expand_weight (E, R, O) and their biases."""

    def __init__(self, config: ClipMoleVisionConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        experts, rank = config.num_experts, config.expert_rank
        self.scale = config.expert_scale
        self.reduce_weight = nn.Parameter(torch.zeros(experts, rank, width_in))
        self.reduce_bias = nn.Parameter(torch.zeros(experts, rank))
        self.expand_weight = nn.Parameter(torch.zeros(experts, rank, width_out))
        self.expand_bias = nn.Parameter(torch.zeros(experts, width_out))
        self.dropout = nn.Dropout(config.expert_dropout)

    def forward(self, x: Tensor, gate: Tensor, base: Tensor) -> Tensor:
        """x (T, N, D), gate (T, N, E), base (T, N, O): base and every expert's branch times its gate."""
        gate = (gate * self.scale).to(x.dtype)
        ranks = F.linear(self.dropout(x), self.reduce_weight.flatten(0, 1), self.reduce_bias.flatten())
        ranks = (ranks.unflatten(-1, (gate.shape[-1], -1)) * gate.unsqueeze(-1)).flatten(-2)
        # expand_bias rides along as one more row per expert, so that it is gated like the rest.
        expand = torch.cat([self.expand_weight.flatten(0, 1), self.expand_bias])
        ranks = torch.cat([ranks, gate], dim=-1).flatten(0, -2).to(base.dtype)
        return torch.addmm(base.flatten(0, -2), ranks, expand.to(base.dtype)).view(base.shape)


class ClipMolePlainMLP(nn.Module):
    def __init__(self, config: ClipMoleVisionConfig) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))


class ClipMoleMLP(nn.Module):
    """An MLP with experts on both projections, which follow one router."""

    def __init__(self, config: ClipMoleVisionConfig) -> None:
        super().__init__()
        self.gate = config.expert_gate
        self.original_module = ClipMolePlainMLP(config)
        self.router = nn.Linear(config.hidden_size, config.num_experts)
        self.moe_down = ClipMoleExperts(config, config.hidden_size, config.intermediate_size)
        self.moe_up = ClipMoleExperts(config, config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        gate = gate_of(self.gate, logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)))
        hidden = self.moe_down(x, gate, self.original_module.fc1(x))
        hidden = self.original_module.activation_fn(hidden)
        return self.moe_up(hidden, gate, self.original_module.fc2(hidden))


class ClipMoleAttention(nn.Module):
    def __init__(self, config: ClipMoleVisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        width = config.hidden_size
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        split = (projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for projection in projections)
        return self.out_proj(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class ClipMoleLayer(GradientCheckpointingLayer):
    def __init__(self, config: ClipMoleVisionConfig, has_experts: bool) -> None:
        super().__init__()
        self.self_attn = ClipMoleAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ClipMoleMLP(config) if has_experts else ClipMolePlainMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipMoleEmbeddings(nn.Module):
    """A class token and the image's patches, with learned positions."""

    def __init__(self, config: ClipMoleVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, int(config.patch_size)  # type: ignore[arg-type]
        self.side = int(config.image_size)  # type: ignore[arg-type]
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding((self.side // patch) ** 2 + 1, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.shape[-2:] != (self.side, self.side):
            raise ValueError(f"images of {self.side} x {self.side} px are needed, got {tuple(pixel_values.shape)}")
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        return tokens + self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))


class ClipMoleEncoder(nn.Module):
    def __init__(self, config: ClipMoleVisionConfig) -> None:
        super().__init__()
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList([ClipMoleLayer(config, index < config.num_expert_layers) for index in layers])
        self.gradient_checkpointing = False


class ClipMoleVisionModel(PreTrainedModel):
    """pixel_values (T, 3, S, S) to hidden states (T, 1 + N, D), of which the first token is the class token.

    As CLIPVisionModel: `last_hidden_state` is the last layer's, `pooler_output` its class token after the final norm.
    """

    config: ClipMoleVisionConfig
    config_class = ClipMoleVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ClipMoleEmbeddings", "ClipMoleLayer"]  # noqa: RUF012 (transformers' own form)
    # Whatever kernel is asked for, this encoder runs torch's own attention.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: ClipMoleVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = ClipMoleEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # sic, CLIP's name
        self.encoder = ClipMoleEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple:
        """output_hidden_states: True for all, or the indices of those wanted (the others are None, as transformers
        does it). Other keywords are those that Llava passes to every encoder; none of them matters here."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden = self.pre_layrnorm(self.embeddings(pixel_values))
        states = [hidden]
        for layer in self.encoder.layers:
            hidden = layer(hidden)
            states.append(hidden)
        output = BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=self.post_layernorm(hidden[:, 0]),
            hidden_states=_selected(states, output_hidden_states),
        )
        return output.to_tuple() if return_dict is False else output


def _selected(states: list[Tensor], wanted: bool | int | list[int] | None) -> Any:
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        return tuple(states)
    kept = {index % len(states) for index in ([wanted] if isinstance(wanted, int) else wanted)}
    return tuple(state if index in kept else None for index, state in enumerate(states))


class ClipMoleLlavaConfig(LlavaConfig):
    """A LlavaConfig whose `vision_config` is a ClipMoleVisionConfig."""

    model_type = "llava_clip_mole"


class ClipMoleLlavaNextConfig(LlavaNextConfig):
    """A LlavaNextConfig whose `vision_config` is a ClipMoleVisionConfig."""

    model_type = "llava_next_clip_mole"


class KeepsTowerWhole:
    """Mixed in before a Llava class: with 4 or 8 bits, the language model alone is quantized unless told otherwise."""

    @classmethod
    def from_pretrained(cls, *args: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
        if isinstance(quantization_config, dict):
            quantization_config = {"llm_int8_skip_modules": UNQUANTIZED, **quantization_config}
        elif getattr(quantization_config, "llm_int8_skip_modules", UNQUANTIZED) is None:
            quantization_config = copy.deepcopy(quantization_config)
            quantization_config.llm_int8_skip_modules = UNQUANTIZED
        return super().from_pretrained(*args, quantization_config=quantization_config, **kwargs)  # type: ignore[misc]


class ClipMoleLlavaForConditionalGeneration(KeepsTowerWhole, LlavaForConditionalGeneration):
    config: ClipMoleLlavaConfig
    config_class = ClipMoleLlavaConfig


class ClipMoleLlavaNextForConditionalGeneration(KeepsTowerWhole, LlavaNextForConditionalGeneration):
    config: ClipMoleLlavaNextConfig
    config_class = ClipMoleLlavaNextConfig


# Llava builds its vision tower from `vision_config` through the Auto classes.
AutoConfig.register("clip_mole_vision_model", ClipMoleVisionConfig, exist_ok=True)
AutoModel.register(ClipMoleVisionConfig, ClipMoleVisionModel, exist_ok=True)
