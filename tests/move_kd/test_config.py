import json
import math

import pytest

from llava.model.multimodal_encoder.move_kd.config import DISTILL_RECIPES, MOLE_RECIPES, DistillConfig, MoLEConfig

PUBLISHED = {
    "moe_encoder": True,
    "moe_encoder_dense": False,
    "moe_encoder_lora_rank": 32,
    "moe_encoder_lora_alpha": 1,
    "moe_encoder_num_experts": 3,
}


def test_a_published_config_is_read_as_released() -> None:
    config = MoLEConfig.from_dict(PUBLISHED)
    assert config == MOLE_RECIPES["release"]
    assert (config.gate, config.init_b, config.dropout, config.layers) == ("top1", "kaiming", 0.05, "all")
    assert config.scale == 1 / 32
    assert MoLEConfig.from_dict({**PUBLISHED, "moe_encoder_dense": True}).gate == "dense"


@pytest.mark.parametrize("recipe", MOLE_RECIPES)
def test_experts_survive_the_way_through_json(recipe: str) -> None:
    config = MoLEConfig.from_recipe(recipe, rank=8, gate="soft", dropout=0.1)
    written = json.loads(json.dumps(config.to_dict()))
    assert MoLEConfig.from_dict(written) == config
    assert written["moe_encoder_dense"] is True
    assert PUBLISHED.keys() <= written.keys()


def test_alpha_follows_the_rank_in_our_recipe_only() -> None:
    assert MoLEConfig.from_recipe("ours", rank=8).scale == 1.0
    assert MoLEConfig.from_recipe("ours", rank=8, alpha=2).scale == 0.25
    assert MoLEConfig.from_recipe("release", rank=8).scale == 0.125


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"moe_encoder": False}, "moe_encoder: true"),
        ({"moe_encoder_lora_rank": None}, "moe_encoder_lora_rank"),
        ({"moe_encoder_lora_rank": 0}, "rank of the experts is 0"),
        ({"moe_encoder_num_experts": 2.5}, "number of experts is 2.5"),
        ({"moe_encoder_lora_alpha": -1}, "alpha"),
        ({"moe_encoder_lora_alpha": math.inf}, "finite"),
        ({"moe_gate": "top2"}, "top1, top1_ste"),
        ({"moe_dropout": 1.5}, "dropout"),
        ({"moe_layers": "last"}, "used, all"),
        ({"moe_init_a": "zero", "moe_init_b": "zero"}, "no expert would ever learn"),
        ({"moe_experts": 3}, "unknown keys"),
    ],
)
def test_a_wrong_expert_config_says_what_is_wrong(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MoLEConfig.from_dict({**PUBLISHED, **change})


def test_recipes_differ_as_the_method_ledger_says() -> None:
    release, paper, ours = (DISTILL_RECIPES[name] for name in ("release", "paper", "ours"))
    assert (release.objectives, release.anchor_share, release.blank_weight) == ((("weighted_mse", 0.5),), 0.8, 1.0)
    assert (release.token_weights, release.teacher_weights, release.balance) == ("release", "release", "pooled")
    assert (paper.token_weights, paper.teacher_weights, paper.blank_weight) == ("attention", "similarity", 0.0)
    assert (ours.objectives, ours.anchor_share, ours.heads) == ((("weighted_mse", 4.0),), 0.05, "student")
    assert (ours.standardize, ours.token_weights, ours.balance) == (True, "attention_half", "per_layer")
    assert DistillConfig() == ours


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": "both"}, "student, linear, teacher, interpolate"),
        ({"anchor_share": 1.2}, "anchor_share"),
        ({"blank_weight": -0.1}, "blank_weight"),
        ({"balance_weight": math.nan}, "balance_weight"),
        ({"objectives": (("weighted_mse", 1.0), ("weighted_mse", 2.0))}, "twice"),
        ({"objectives": (("weighted_mse", -1.0),)}, "weighted_mse"),
        ({"statistics_steps": 0}, "at least 1"),
        ({"teacher_weights": "similarity"}, "heads='student'"),
        ({"head": "student"}, "has no head"),
    ],
)
def test_a_wrong_distillation_says_what_is_wrong(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DistillConfig.from_recipe("ours", **change)


def test_token_weights_without_an_anchor_are_refused_and_an_anchor_need_not_be_a_target() -> None:
    ours = DistillConfig()
    with pytest.raises(ValueError, match=r"'clip', but the teachers are \['eva'\]"):
        ours.targets(["eva"])
    assert ours.targets(["eva", "clip"]) == ("clip", "eva")
    assert DistillConfig(anchor_is_target=False).targets(["eva", "clip"]) == ("eva",)
    assert DistillConfig(token_weights="uniform").targets(["eva"]) == ("eva",)
    assert ours.targets([]) == ()
