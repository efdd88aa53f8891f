"""What a checkpoint leaves out of the vision side: published LLaVA 1.5 files hold no tower, plain ones no experts."""

from typing import TYPE_CHECKING, Any

from transformers import GenerationMixin, PreTrainedModel

from llava.model.multimodal_encoder.move_kd.mole import MoLE
from llava.model.multimodal_encoder.vision_tower import VisionTower
from llava.model.vision_modules import LlavaMetaModel

if TYPE_CHECKING:

    class CausalModel(PreTrainedModel, GenerationMixin):
        """What every language model is that ours are mixed into."""

else:
    CausalModel = object


class CompletesWeights(CausalModel):
    """Mixed into the causal language models: from_pretrained gives a model that is ready to see."""

    def get_model(self) -> LlavaMetaModel:
        return self.model

    def get_vision_tower(self) -> VisionTower | None:
        return self.get_model().get_vision_tower()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers' own; what a checkpoint leaves out of tower and experts is then filled (see `complete`)."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, report = loaded
        model.complete(report["missing_keys"])
        return (model, report) if output_loading_info else model

    def complete(self, missing: set[str]) -> None:
        """Fill what a checkpoint did not hold: the whole tower from the encoder it names, experts and newline anew.

        missing: names that were not loaded. Raises ValueError if the checkpoint holds the tower in part.
        """
        tower, inner = self.get_vision_tower(), self.get_model()
        if tower is None:
            return
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        plain = {names[id(parameter)] for parameter in tower.plain_parameters().values()}
        if absent := plain & missing:
            if absent != plain:
                raise ValueError(
                    f"the checkpoint holds only {len(plain) - len(absent)} of the vision tower's {len(plain)} "
                    f"tensors; missing are {sorted(absent)[:4]} and others"
                )
            tower.load_model()
        tower.mark_loaded()
        for module in tower.modules():
            if isinstance(module, MoLE) and any(names[id(tensor)] in missing for tensor in module.parameters()):
                module.reset_parameters()
        if inner.image_newline is not None and names[id(inner.image_newline)] in missing:
            inner.reset_newline()
