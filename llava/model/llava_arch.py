"""The two mixins that make a language model see: one for the inner model, which owns tower and projector, and one
for the causal language model, which puts image features into its text.

Neither knows which language model it is mixed into, nor that a model may be distilled.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from llava.anyres import unpad_image
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.completion import CompletesWeights
from llava.model.multimodal_encoder.move_kd.student import expert_parameters
from llava.model.multimodal_encoder.move_kd.types import StudentFeatures
from llava.model.packing import PackConfig, pack_image, pack_video
from llava.model.splice import Side, Spliced, refuse_placeholders, splice
from llava.model.tokenizer import add_image_tokens
from llava.model.vision_inputs import Images, Modalities, is_modalities, modalities_of, sizes_of, tiles_of
from llava.model.vision_modules import LlavaMetaModel, load_new_embeddings

__all__ = ["LlavaMetaForCausalLM", "LlavaMetaModel", "LlavaOutput", "unpad_image"]

logger = logging.get_logger(__name__)

OUTPUT_FIELDS = ("loss", "logits", "past_key_values", "hidden_states", "attentions")


@dataclass
class LlavaOutput(CausalLMOutputWithPast):
    """vision: what the tower gave for the batch's tiles, if images were encoded in this call."""

    vision: StudentFeatures | None = None


class LlavaMetaForCausalLM(CompletesWeights):
    """Mixed in before a causal language model, whose inner model is a LlavaMetaModel.

    Calls without images are the language model's own. The loss is a mean over the labels of the call, and 0 if
    there are none.
    """

    # The Trainer must not scale the loss: it is a mean already, and distillation terms will be added to it.
    accepts_loss_kwargs = False

    loss_only = False  # see leave_out_idle_logits

    def _assemble(self, inner: nn.Module) -> None:
        """Finish construction around the inner model, as the mixed-in class would around its own."""
        self.model = inner
        self.vocab_size = self.config.vocab_size
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        self.post_init()

    def leave_out_idle_logits(self) -> None:
        """From now on logits begin before the first label wherever images and labels are given: no loss reads those of
        the pictures in front of it, which with 32,000 words are the largest tensor of a training step."""
        self.loss_only = True
        # What is left is a slice, which PyTorch would multiply sample by sample with a copy of the head for each.
        self.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the image tokens that the arguments ask for; their embeddings start at the mean of the others.

        With `mm_use_im_start_end`, `tune_mm_mlp_adapter` trains the input embeddings but not the head, and
        `pretrain_mm_mlp_adapter` holds the new tokens' embeddings.
        """
        self.config.mm_use_im_start_end = model_args.mm_use_im_start_end
        self.config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
        before = len(tokenizer)
        add_image_tokens(tokenizer, self)
        if model_args.tune_mm_mlp_adapter and (model_args.mm_use_im_start_end or model_args.mm_use_im_patch_token):
            self.get_input_embeddings().requires_grad_(bool(model_args.mm_use_im_start_end))
            self.get_output_embeddings().requires_grad_(False)
        if model_args.mm_use_im_start_end and model_args.pretrain_mm_mlp_adapter:
            load_new_embeddings(self.get_input_embeddings(), model_args.pretrain_mm_mlp_adapter, before)

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Every parameter once, by part and name: `projector` (with newline and resampler), `mole` (the experts),
        `vision_tower` (without them), and `language_model`, which is everything else."""
        inner, tower = self.get_model(), self.get_vision_tower()
        owners = {id(parameter): "projector" for parameter in inner.projector_parameters()}
        if tower is not None:
            owners |= {id(parameter): "vision_tower" for parameter in tower.parameters()}
            owners |= {id(parameter): "mole" for parameter in expert_parameters(tower).values()}
        parts: dict[str, dict[str, nn.Parameter]] = {
            name: {} for name in ("projector", "mole", "vision_tower", "language_model")
        }
        for name, parameter in self.named_parameters():
            parts[owners.get(id(parameter), "language_model")][name] = parameter
        return parts

    def encode_images(self, images: Tensor) -> Tensor:
        """(T, 3, S, S) to (T, N, D), features in the language model's width."""
        return self._encode(images)[0]

    def _encode(self, tiles: Tensor) -> tuple[Tensor, StudentFeatures]:
        tower = self.get_vision_tower()
        if tower is None:
            raise ValueError("this model has no vision tower: its config lacks mm_vision_tower")
        vision = tower.encode(tiles)
        return self.get_model().project(vision.features), vision

    def _image_features(
        self, images: Images, image_sizes: Any, modalities: Modalities | None
    ) -> tuple[list[Tensor], StudentFeatures]:
        """For each image the (n, D) tokens that replace its placeholder. All tiles are encoded in one call."""
        tiles, counts = tiles_of(images)
        features, vision = self._encode(tiles)
        config, newline = PackConfig.of(self.config), self.get_model().newline(features)
        if newline is not None and newline.requires_grad:
            # A batch without a row to end must give the newline a gradient all the same: other ranks wait for it.
            features = features + 0.0 * newline
        if counts is None:
            return list(features), vision
        kinds, sizes = modalities_of(modalities, len(counts)), sizes_of(image_sizes, len(counts))
        packed = [
            pack_video(group, config, newline=newline)
            if kind == "video"
            else pack_image(group, config, image_size=size, tile_size=self.tile_size, newline=newline)
            for group, kind, size in zip(features.split(counts), kinds, sizes, strict=True)
        ]
        return packed, vision

    @property
    def tile_size(self) -> int:
        """Pixels of a tile's side."""
        tower = self.get_vision_tower()
        assert tower is not None
        return tower.image_size

    def _splice(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        features: list[Tensor],
        padding_side: Side,
    ) -> Spliced:
        embed = self.get_model().get_input_embeddings()
        text = embed(input_ids.masked_fill(input_ids == IMAGE_TOKEN_INDEX, 0))
        limit = getattr(self.config, "tokenizer_model_max_length", None)
        spliced = splice(text, features, input_ids, labels, attention_mask, max_length=limit, padding_side=padding_side)
        if spliced.lost_labels:
            logger.warning_once(
                f"with their pictures, samples have more than the {limit} tokens of tokenizer_model_max_length: their "
                "ends are cut, and nothing is learned of the answers there. --model_max_length raises it."
            )
        return spliced

    def _embed_batch(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Images | None,
        image_sizes: Any,
        modalities: Modalities | None,
    ) -> tuple[tuple[Any, ...], StudentFeatures | None, int]:
        """`prepare_inputs_labels_for_multimodal`, what the tower gave, and before which position no label is."""
        if self.get_vision_tower() is None or images is None or input_ids is None or input_ids.shape[1] == 1:
            if images is None and self.get_vision_tower() is not None and input_ids is not None:
                refuse_placeholders(input_ids)
            return (input_ids, position_ids, attention_mask, past_key_values, None, labels), None, 0
        features, vision = self._image_features(images, image_sizes, modalities)
        side: Side = "left" if getattr(self.config, "tokenizer_padding_side", None) == "left" else "right"
        spliced = self._splice(input_ids, attention_mask, labels, features, side)
        positions = None if position_ids is None else spliced.positions
        mask = None if attention_mask is None else spliced.mask.to(attention_mask.dtype)
        new_labels = None if labels is None else spliced.labels
        return (None, positions, mask, past_key_values, spliced.embeds, new_labels), vision, spliced.first_label

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Images | None,
        modalities: Any = None,
        image_sizes: Any = None,
    ) -> tuple[Any, ...]:
        """(None, position_ids, attention_mask, past_key_values, inputs_embeds, labels), images spliced in.

        Positions, mask and labels come back None if they were; the mask keeps its dtype. Without tower or images, or
        for a single token, the arguments come back unchanged with None for the embeddings.
        modalities: the 7th positional was the image sizes in LLaVA 1.5; either is recognized by its type.
        Raises ValueError if the number of images does not match the placeholders.
        """
        if not is_modalities(modalities):
            modalities, image_sizes = None, modalities if image_sizes is None else image_sizes
        arguments = (input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes, modalities)
        return self._embed_batch(*arguments)[0]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: Images | None = None,
        image_sizes: Any = None,
        return_dict: bool | None = None,
        modalities: Modalities | None = None,
        dpo_forward: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """LlavaOutput; logits are as long as the text with its images, but see `leave_out_idle_logits`.
        `return_dict=False` gives its tuple.

        images, image_sizes, modalities: see `tiles_of` and `modalities_of`; one image per `<image>`, and one stand-in
        for each sample without. dpo_forward: return (logits, labels) and no loss.
        """
        vision, first_label = None, 0
        if inputs_embeds is None:
            arguments = (input_ids, position_ids, attention_mask, past_key_values, labels, images)
            inputs, vision, first_label = self._embed_batch(*arguments, image_sizes, modalities)
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = inputs
        if labels is not None and not dpo_forward:
            if self.loss_only and first_label > 1:
                labels = labels[:, first_label - 1 :]  # a label is told from the position before
                logits_to_keep = labels.shape[1]
            # The count is of labels that the shift leaves; at least 1, so that a call without any costs 0, not nan.
            count = (labels[:, 1:] != IGNORE_INDEX).sum().clamp(min=1)
            kwargs = {"labels": labels, "num_items_in_batch": count, **kwargs}
        wanted = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        output = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            return_dict=True,
            **{name: flag for name, flag in wanted.items() if flag is not None},
            **kwargs,
        )
        if dpo_forward:
            return output.logits, labels
        result = LlavaOutput(**{name: output.get(name) for name in OUTPUT_FIELDS}, vision=vision)
        return result.to_tuple() if return_dict is False else result

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        images: Images | None = None,
        image_sizes: Any = None,
        modalities: Modalities | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Ids of the new tokens only, (B, n). inputs (or input_ids): (B, S), `<image>` as IMAGE_TOKEN_INDEX.

        Prompts of unequal length are padded on the left whatever the tokenizer does, so a batch answers as its rows
        would alone; positions follow from the mask, so position_ids are not used. All else goes to transformers.
        Raises NotImplementedError for inputs_embeds, ValueError for images that do not match the placeholders.
        """
        ids = inputs if inputs is not None else input_ids
        if "inputs_embeds" in kwargs:
            raise NotImplementedError("generate takes input ids and images, not inputs_embeds")
        if ids is None:
            raise ValueError("generate needs the prompt's ids: pass inputs (or input_ids)")
        if images is not None:
            features, _ = self._image_features(images, image_sizes, modalities)
        else:
            refuse_placeholders(ids)
            features = [self._no_features() for _ in ids]
        spliced = self._splice(ids, attention_mask, None, features, "left")
        return super().generate(  # type: ignore[misc]
            inputs_embeds=spliced.embeds, attention_mask=spliced.mask.long(), **kwargs
        )

    def _no_features(self) -> Tensor:
        return torch.empty(0, self.config.hidden_size, device=self.device)
