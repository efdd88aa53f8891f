"""What stands beside exported weights: a tokenizer that cuts prompts as LLaVA does, and an image processor that gives
LLaVA's pixels.
"""

import copy
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, normalizers
from transformers import (
    LlavaImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.mm_utils import tokenizer_image_token
from llava.model.checkpoint_io import CheckpointError, read_json, write_json

PAD_TOKEN = "<pad>"
PROBES = (
    f"A chat. USER: {DEFAULT_IMAGE_TOKEN}\nWhat is this? ASSISTANT:",
    f"{DEFAULT_IMAGE_TOKEN}\n{DEFAULT_IMAGE_TOKEN}\nCompare them.",
    f"a {DEFAULT_IMAGE_TOKEN}{DEFAULT_IMAGE_TOKEN} b",
    "no picture at all",
)
# The end of a run of pictures, where text follows that has no space in front.
BEFORE_TEXT = f"{DEFAULT_IMAGE_TOKEN}(?!{DEFAULT_IMAGE_TOKEN}|[ ▁])(?=.|\\n)"


def collapsed_ids(ids: list[int], image_token: int) -> list[int]:
    """Ids with every run of image tokens as LLaVA's one placeholder each, as they are before pictures are known."""
    return [IMAGE_TOKEN_INDEX if token == image_token else token for token in ids]


def exported_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that knows `<image>` and a pad token, and gives the ids of `tokenizer_image_token`.

    LLaVA tokenizes the text behind a picture by itself, and a Llama tokenizer starts every text with a space. Where
    that shows in the ids, the copy puts that space behind a picture. Raises CheckpointError if ids differ all the same.
    """
    exported = _with_new_tokens(tokenizer, is_normalized=False)
    if differing_probes(tokenizer, exported):
        exported = _with_new_tokens(tokenizer, is_normalized=True)
        _put_space_behind_pictures(exported)
    if differing := differing_probes(tokenizer, exported):
        raise CheckpointError(
            f"the tokenizer ({type(tokenizer).__name__}) cuts {differing[0]!r} otherwise when {DEFAULT_IMAGE_TOKEN} is "
            "a token of its own, so the exported model would not see the ids that it was trained with."
        )
    return exported


def differing_probes(tokenizer: PreTrainedTokenizerBase, exported: PreTrainedTokenizerBase) -> list[str]:
    """Those of PROBES whose ids are not the same."""
    image: Any = exported.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    return [
        text
        for text in PROBES
        if collapsed_ids(exported(text).input_ids, image) != tokenizer_image_token(text, tokenizer)
    ]


def _with_new_tokens(tokenizer: Any, is_normalized: bool) -> Any:
    """A plain fast tokenizer, because the named ones (Llama's, for one) rebuild themselves by their own rules when they
    are loaded. is_normalized: `<image>` is looked for in the text that the normalizer gives, not in the original."""
    exported = PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(tokenizer.backend_tokenizer),
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **tokenizer.special_tokens_map,
    )
    image = AddedToken(DEFAULT_IMAGE_TOKEN, special=True, normalized=is_normalized)
    exported.add_tokens([image], special_tokens=True)
    if exported.pad_token is None or exported.pad_token == exported.unk_token:
        exported.add_special_tokens({"pad_token": PAD_TOKEN})
    return exported


def _put_space_behind_pictures(tokenizer: Any) -> None:
    backend = tokenizer.backend_tokenizer
    rule = normalizers.Replace(Regex(BEFORE_TEXT), DEFAULT_IMAGE_TOKEN + " ")
    backend.normalizer = rule if backend.normalizer is None else normalizers.Sequence([rule, backend.normalizer])


def image_settings(image_processor: Any) -> dict[str, Any]:
    """Size, crop, mean and std of a tower's image processor, CLIP's or SigLIP's."""
    crop = dict(image_processor.crop_size)
    size = image_processor.size
    return {
        # SigLIP squashes a picture to the crop's size; CLIP scales its shorter side.
        "size": {"shortest_edge": size["shortest_edge"]} if "shortest_edge" in size else crop,
        "crop_size": {"height": crop["height"], "width": crop["width"]},
        "image_mean": [float(value) for value in image_processor.image_mean],
        "image_std": [float(value) for value in image_processor.image_std],
    }


def single_image_processor(tower: Any, aspect_ratio: str | None) -> Any:
    """One picture, one image: padded to a square on the mean color where the model was trained so."""
    return LlavaImageProcessor(**image_settings(tower.image_processor), do_pad=aspect_ratio == "pad")


def exported_processor(config: Any, tower: Any, tokenizer: PreTrainedTokenizerBase, template: str) -> Any:
    """Pictures and chats to inputs. config: the exported model's."""
    text = {
        "tokenizer": tokenizer,
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        # CLIP's class token; the strategy `default` takes it off again.
        "num_additional_image_tokens": int(tower.has_class_token),
        "chat_template": template,
    }
    tokenizer.chat_template = template
    if "next" in config.model_type:
        pixels = image_settings(tower.image_processor) | {"image_grid_pinpoints": config.image_grid_pinpoints}
        return LlavaNextProcessor(image_processor=LlavaNextImageProcessor(**pixels), **text)
    return LlavaProcessor(image_processor=single_image_processor(tower, config.image_aspect_ratio), **text)


def save_processor(processor: Any, directory: Path) -> None:
    """For transformers 5, and preprocessor_config.json for those who look for that."""
    processor.save_pretrained(directory)
    processor.image_processor.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    settings = read_json(file) | {"padding_side": "left"}  # as generation wants it
    if settings["tokenizer_class"] == "TokenizersBackend":  # older releases know it by this name
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(settings, file)
