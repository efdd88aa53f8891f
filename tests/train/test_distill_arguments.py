import dataclasses

import pytest
from transformers import HfArgumentParser

from llava.model.multimodal_encoder.move_kd.config import DISTILL_RECIPES, MOLE_RECIPES
from llava.train.distill_arguments import DistillArguments

PUBLISHED_LINE = (
    "--encoder_teachers clip eva convnext --kd True --kd_w 0.5 --kd_memory_w 0.8 --token_weight True "
    "--teacher_weight True --moe_encoder True --moe_encoder_dense False --moe_encoder_lora_rank 32 "
    "--moe_encoder_lora_alpha 1 --moe_encoder_num_experts 3 --moe_encoder_balance_w 0.01"
)


def parse(line: str) -> DistillArguments:
    (arguments,) = HfArgumentParser([DistillArguments]).parse_args_into_dataclasses(line.split())
    return arguments


def test_a_published_launch_line_is_the_released_recipe() -> None:
    arguments = parse(PUBLISHED_LINE)
    assert arguments.recipe == "release"
    assert arguments.to_config() == DISTILL_RECIPES["release"]
    assert arguments.mole_config() == MOLE_RECIPES["release"]
    assert arguments.teacher_specs() == ["clip", "eva", "convnext"]


def test_a_published_launch_line_stays_released_where_it_switches_weights_off() -> None:
    line = PUBLISHED_LINE.replace("weight True", "weight False")
    arguments = parse(line)
    assert arguments.recipe == "release"
    equal = {"token_weights": "uniform", "teacher_weights": "uniform"}
    assert arguments.to_config() == dataclasses.replace(DISTILL_RECIPES["release"], **equal)


def test_naming_teachers_is_enough_for_our_recipe_experts_included() -> None:
    arguments = parse("--encoder_teachers clip eva")
    assert arguments.to_config() == DISTILL_RECIPES["ours"]
    assert arguments.mole_config() == MOLE_RECIPES["ours"]
    assert parse("--encoder_teachers clip --moe_encoder False").mole_config() is None


def test_nothing_asked_is_plain_llava() -> None:
    for line in ("", "--encoder_teachers clip --kd False", "--kd_w 0.5"):
        arguments = parse(line)
        assert (arguments.to_config(), arguments.mole_config(), arguments.teacher_specs()) == (None, None, [])


def test_experts_without_teachers_keep_their_balance_term() -> None:
    arguments = parse("--moe_encoder True --moe_encoder_lora_rank 8 --moe_gate soft")
    config = arguments.to_config()
    assert config is not None
    assert (config.objectives, config.balance_weight) == ((), 0.01)
    mole = arguments.mole_config()
    assert mole is not None
    assert (mole.rank, mole.scale, mole.gate) == (8, 1.0, "soft")
    assert arguments.to_config(tune_encoder=False) is None
    taught = parse("--encoder_teachers clip").to_config(tune_encoder=False)
    assert taught is not None
    assert taught.balance_weight == 0.0


def test_the_students_frozen_copy_anchors_where_clip_is_not_named() -> None:
    arguments = parse("--encoder_teachers eva dinov2:size=448")
    assert arguments.teacher_specs() == ["eva", "dinov2:size=448", "clip"]
    config = arguments.to_config()
    assert config is not None
    assert not config.anchor_is_target
    uniform = parse("--encoder_teachers eva --kd_token_weights uniform")
    assert uniform.teacher_specs() == ["eva"]
    named = parse("--encoder_teachers eva clip:path=/x,name=anchor --kd_anchor anchor")
    assert named.teacher_specs() == ["eva", "clip:path=/x,name=anchor"]


@pytest.mark.parametrize(
    ("flags", "item", "value"),
    [
        ("--kd_w 2", "objectives", (("weighted_mse", 2.0),)),
        (
            "--kd_objectives weighted_mse=2 router_balance",
            "objectives",
            (("weighted_mse", 2.0), ("router_balance", 1.0)),
        ),
        ("--kd_memory_w 0.3", "anchor_share", 0.3),
        ("--kd_clip_share 0.3", "anchor_share", 0.3),
        ("--kd_heads teacher", "heads", "teacher"),
        ("--kd_experts own", "experts", "own"),
        ("--kd_grid pool", "grid", "pool"),
        ("--kd_standardize False", "standardize", False),
        ("--kd_statistics_steps 100", "statistics_steps", 100),
        ("--kd_token_weights attention", "token_weights", "attention"),
        ("--kd_recipe ours --token_weight False", "token_weights", "uniform"),
        ("--kd_balance pooled", "balance", "pooled"),
        ("--kd_blank_weight 1", "blank_weight", 1.0),
        ("--moe_encoder_balance_w 0", "balance_weight", 0.0),
    ],
)
def test_each_flag_sets_its_item_and_no_other(flags: str, item: str, value: object) -> None:
    config = parse(f"--encoder_teachers clip eva {flags}").to_config()
    assert config is not None
    changed = {name for name, now in vars(config).items() if now != getattr(DISTILL_RECIPES["ours"], name)}
    assert changed == {item}
    assert getattr(config, item) == value


@pytest.mark.parametrize(
    ("flags", "item", "value"),
    [
        ("--moe_gate top1", "gate", "top1"),
        ("--moe_encoder_dense True", "gate", "dense"),
        ("--moe_init_b kaiming", "init_b", "kaiming"),
        ("--moe_init_a linear", "init_a", "linear"),
        ("--moe_dropout 0.1", "dropout", 0.1),
        ("--moe_layers all", "layers", "all"),
        ("--moe_encoder_lora_alpha 2", "alpha", 2.0),
        ("--moe_encoder_num_experts 5", "experts", 5),
    ],
)
def test_each_expert_flag_sets_its_item_and_no_other(flags: str, item: str, value: object) -> None:
    mole = parse(f"--encoder_teachers clip eva {flags}").mole_config()
    assert mole is not None
    assert {name for name, now in vars(mole).items() if now != getattr(MOLE_RECIPES["ours"], name)} == {item}
    assert getattr(mole, item) == value


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--kd_memory_w 0.3 --kd_clip_share 0.4", "same share"),
        ("--kd_w 2 --kd_objectives weighted_mse=1", "--kd_w has none to set"),
        ("--kd_objectives weighted_mse=big", "NAME=WEIGHT"),
        ("--token_weight True --kd_token_weights uniform", "contradict"),
        ("--kd_teacher_weights similarity", "heads='student'"),
        ("--kd_memory_w 1.5", "anchor_share"),
        ("--kd_w -1", "weighted_mse"),
    ],
)
def test_contradictions_are_refused(flags: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(f"--encoder_teachers clip eva --kd_recipe ours {flags}").to_config()


def test_a_dense_flag_and_another_gate_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="contradict"):
        parse("--moe_encoder True --moe_encoder_dense True --moe_gate top1").mole_config()
    with pytest.raises(ValueError, match="contradict"):
        parse("--moe_encoder True --moe_encoder_dense False --moe_gate soft").mole_config()


def test_sparse_experts_may_use_any_sparse_gate() -> None:
    mole = parse("--moe_encoder True --moe_encoder_dense False").mole_config()
    assert mole == MOLE_RECIPES["ours"]


def test_a_word_that_is_no_choice_stops_the_parser() -> None:
    with pytest.raises(SystemExit):
        parse("--kd_recipe theirs")


@pytest.mark.parametrize(
    ("line", "idle"),
    [
        ("--encoder_teachers clip eva --kd_w 2 --kd_grid pool --moe_gate soft --kd_clip_share 0.3", set()),
        (PUBLISHED_LINE, set()),
        ("--kd_w 0.5 --teacher_cache d --distill_views all", {"kd_w", "teacher_cache", "distill_views"}),
        ("--encoder_teachers clip --kd False --kd_heads teacher", {"kd_heads"}),
        ("--encoder_teachers clip --moe_encoder False --moe_gate soft --kd_balance pooled", {"moe_gate", "kd_balance"}),
        ("--moe_encoder True --moe_encoder_lora_rank 8 --kd_balance pooled --kd_blank_weight 1", set()),
        ("--encoder_teachers eva --kd_clip_share 0.3", {"kd_clip_share"}),
        ("--encoder_teachers eva --kd_token_weights uniform --kd_anchor clip", {"kd_anchor"}),
        ("--encoder_teachers clip eva --kd_heads teacher --kd_grid pool", {"kd_grid"}),
        ("--encoder_teachers clip eva --kd_standardize False --kd_statistics_steps 9", {"kd_statistics_steps"}),
        ("--encoder_teachers clip eva --kd_recipe ours --teacher_weight True", {"teacher_weight"}),
        ("--encoder_teachers clip eva --kd_balance pooled --moe_encoder_balance_w 0", {"kd_balance"}),
        ("--moe_encoder True --kd_balance pooled --moe_encoder_balance_w 0", {"kd_balance"}),
        (
            "--encoder_teachers clip --kd_balance pooled --moe_encoder_balance_w 0 --kd_objectives router_balance=1",
            set(),
        ),
    ],
)
def test_flags_that_change_nothing_are_told(line: str, idle: set[str]) -> None:
    assert set(parse(line).idle_flags()) == idle


@pytest.mark.parametrize("experts", ["--moe_encoder True", "--encoder_teachers clip eva"])
def test_a_balance_of_experts_that_do_not_train_is_told(experts: str) -> None:
    idle = parse(f"{experts} --kd_balance pooled --moe_encoder_balance_w 0.5").idle_flags(tune_encoder=False)
    assert set(idle) == {"kd_balance", "moe_encoder_balance_w"}
