"""Models of a few thousand weights, written to disk in the layouts that published checkpoints have.

Everything is random but seeded by the suite; nothing is downloaded. CLIP shows 28 px images as a 4 x 4 grid.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

TOKENIZER_MODEL = Path(__file__).parent / "parity" / "vectors" / "tokenizers" / "spm_tiny.model"
IMAGE_SIZE, PATCH_SIZE, VISION_WIDTH = 28, 7, 32
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
VOCAB_SIZE, HIDDEN_SIZE = 900, 64  # as many rows as spm_tiny.model has pieces

LANGUAGE_MODELS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen": (Qwen2Config, Qwen2ForCausalLM),
}
LANGUAGE_SETTINGS: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 128,  # a multiple of 64, as 4-bit kernels want it
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None}
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def tiny_clip_config(**overrides: Any) -> CLIPVisionConfig:
    settings = {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "projection_dim": 16,
    }
    return CLIPVisionConfig(**(settings | overrides))


def tiny_clip_folder(directory: Path, **overrides: Any) -> Path:
    """A CLIP vision tower in `directory`/clip-tiny, tensors named as published (`vision_model.` in front)."""
    folder = Path(directory) / "clip-tiny"
    config = tiny_clip_config(**overrides)
    _write_tower(folder, config, CLIPVisionModel(config))
    side = config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor.save_pretrained(folder)
    return folder


def tiny_siglip_folder(directory: Path, **overrides: Any) -> Path:
    """A SigLIP vision tower in `directory`/siglip-tiny, with its pooling head, as published."""
    folder = Path(directory) / "siglip-tiny"
    settings = {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    config = SiglipVisionConfig(**(settings | overrides))
    _write_tower(folder, config, SiglipVisionModel(config))
    return folder


def _write_tower(folder: Path, config: PreTrainedConfig, model: PreTrainedModel) -> None:
    config.save_pretrained(folder)
    state = {f"vision_model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def tiny_tokenizer_folder(directory: Path) -> Path:
    """A sentencepiece tokenizer in `directory`, laid out as Vicuna's: begin-of-text is added, <unk> pads."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TOKENIZER_MODEL, directory / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "model_max_length": 512,
        "padding_side": "right",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return directory


def tiny_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    return LlamaTokenizer.from_pretrained(tiny_tokenizer_folder(Path(directory) / "tokenizer"))


def tiny_lm_folder(directory: Path, backbone: str = "llama", **overrides: Any) -> Path:
    """A plain language model with tokenizer, as training starts from: `directory`/`backbone`-tiny."""
    folder = Path(directory) / f"{backbone}-tiny"
    config_class, model_class = LANGUAGE_MODELS[backbone]
    model_class(config_class(**(LANGUAGE_SETTINGS | overrides))).save_pretrained(folder)
    return tiny_tokenizer_folder(folder)


def tiny_config(tower: Path | None, backbone: str = "llama", **overrides: Any) -> PreTrainedConfig:
    """The configuration of a LLaVA model on top of the vision tower in folder `tower`."""
    from llava.model import LlavaConfig, LlavaMistralConfig, LlavaQwenConfig

    classes = {"llama": LlavaConfig, "mistral": LlavaMistralConfig, "qwen": LlavaQwenConfig}
    vision: dict[str, Any] = {}
    if tower is not None:
        vision = {
            "mm_vision_tower": str(tower),
            "mm_hidden_size": VISION_WIDTH,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_projector_type": "mlp2x_gelu",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "use_mm_proj": True,
            "image_aspect_ratio": "pad",
        }
    return classes[backbone](**(LANGUAGE_SETTINGS | vision | overrides))


def tiny_llava(directory: Path, backbone: str = "llama", **config_overrides: Any) -> Any:
    """A LLaVA model in evaluation mode, its CLIP tower (written to `directory`) loaded. `tower=` names another."""
    from llava.model import LlavaLlamaForCausalLM, LlavaMistralForCausalLM, LlavaQwenForCausalLM

    classes = {"llama": LlavaLlamaForCausalLM, "mistral": LlavaMistralForCausalLM, "qwen": LlavaQwenForCausalLM}
    tower = config_overrides.pop("tower", None) or tiny_clip_folder(directory)
    model = classes[backbone](tiny_config(tower, backbone, **config_overrides))
    model.get_vision_tower().load_model()
    return model.eval()


def save_tiny_llava(directory: Path, backbone: str = "llama", **config_overrides: Any) -> Path:
    """A full checkpoint (tower included) with tokenizer in `directory`/llava-tiny; its tower lies beside it."""
    directory = Path(directory)
    folder = directory / "llava-tiny"
    tiny_llava(directory, backbone, **config_overrides).save_pretrained(folder)
    return tiny_tokenizer_folder(folder)


def tiny_images(count: int, side: int = IMAGE_SIZE) -> torch.Tensor:
    """Random pixels, (count, 3, side, side) float32."""
    return torch.randn(count, 3, side, side)


def right_padded(*rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, S) padded with 0 and their boolean mask."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    return ids, mask
