"""The recipe, end to end, on a tiny world: what it changes, what it writes, what it logs, and how it fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_state_dict, read_tower
from llava.train.resume import checkpoints, last_checkpoint
from tests.tiny_teachers import make_eva
from tests.train.runs import RUN_FLAGS, STAGE_ONE, STAGE_TWO, World, command_line, losses, train_in_process, train_tiny

PROJECTOR = "model.mm_projector.0.weight"


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def _projector(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "mm_projector.bin", weights_only=True)


def _history(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_stage_one_writes_the_published_files_and_no_language_model(stage_one: Path) -> None:
    names = {"config.json", "mm_projector.bin", "trainer_state.json", "tokenizer.json", "tokenizer_config.json"}
    assert _files(stage_one) == names
    assert set(_projector(stage_one)) == {f"model.mm_projector.{n}.{k}" for n in (0, 2) for k in ("weight", "bias")}
    config = json.loads((stage_one / "config.json").read_text())
    assert config["use_cache"] is True
    assert config["tune_mm_mlp_adapter"] is True
    assert config["tokenizer_model_max_length"] == 128
    assert config["mm_vision_tower"].endswith("clip-tiny")


def test_a_checkpoint_of_stage_one_is_light_and_complete(stage_one: Path) -> None:
    [checkpoint] = checkpoints(stage_one)
    assert checkpoint.name == "checkpoint-4"
    assert last_checkpoint(stage_one) == checkpoint
    state = load_file(checkpoint / "trained_state.safetensors")
    assert {name for name in state if "mm_projector" not in name} == set()
    assert not (checkpoint / "model.safetensors").exists()


def test_stage_one_loads_on_its_base(stage_one: Path, world: World) -> None:
    base = str(world.folder / "llama-tiny")
    _, model, processor, _ = load_pretrained_model(str(stage_one), base, "llava-stage1", device="cpu")
    assert processor is not None
    assert torch.equal(
        model.get_model().mm_projector[0].weight.float(), _projector(stage_one)[PROJECTOR].half().float()
    )


@pytest.fixture(scope="module")
def stage_two(world: World, stage_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        flags = {"init_from": stage_one, "data_path": world.folder / "chats.json", "max_steps": 2}
        return train_tiny(world, tmp_path_factory.mktemp("stage2"), patch, STAGE_TWO, flags)


def test_stage_two_goes_on_from_stage_one_and_writes_a_whole_model(
    stage_one: Path, stage_two: Path, world: World
) -> None:
    state = read_state_dict(stage_two)
    before = read_state_dict(world.folder / "llama-tiny")
    tower = read_state_dict(world.folder / "clip-tiny")
    assert not torch.equal(state["lm_head.weight"], before["lm_head.weight"])
    prefix = "model.vision_tower.vision_tower."
    assert all(torch.equal(state[prefix + name], tensor) for name, tensor in tower.items())
    # Two small steps away from stage 1, and far from a fresh projector.
    assert torch.allclose(state[PROJECTOR], _projector(stage_one)[PROJECTOR], atol=5e-3)
    _, model, _, _ = load_pretrained_model(str(stage_two), None, "llava-tiny", device="cpu")
    assert model.config.image_aspect_ratio == "pad"


def test_the_three_older_flags_load_what_init_from_loads(
    world: World, stage_one: Path, stage_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {"pretrain_mm_mlp_adapter": stage_one / "mm_projector.bin", "data_path": world.folder / "chats.json"}
    train_tiny(world, tmp_path, monkeypatch, STAGE_TWO, older, {"max_steps": 2})
    assert losses(tmp_path) == losses(stage_two)


def test_the_logged_terms_sum_to_the_loss_and_throughput_counts_pictures(stage_two: Path) -> None:
    logs = [entry for entry in _history(stage_two) if "loss" in entry]
    assert [entry["lm"] for entry in logs] == pytest.approx([entry["loss"] for entry in logs])
    assert any(entry["images_per_second"] > 0 for entry in logs)


def test_going_on_from_a_whole_model_keeps_its_tower_and_projector(
    world: World, stage_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"model_name_or_path": stage_two, "mm_tunable_parts": "mm_language_model", "max_steps": 1}
    train_tiny(world, tmp_path, monkeypatch, STAGE_TWO, flags)
    before, after = read_state_dict(stage_two), read_state_dict(tmp_path)
    assert torch.equal(before[PROJECTOR], after[PROJECTOR])
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_a_trained_tower_is_written_and_what_is_not_run_keeps_its_weights(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter", "mm_vision_tower_lr": 1e-2, "max_steps": 1}
    train_tiny(world, tmp_path, monkeypatch, {"version": "plain"}, parts)
    state, tower = read_state_dict(tmp_path), read_state_dict(world.folder / "clip-tiny")
    layers = "model.vision_tower.vision_tower.vision_model.encoder.layers"
    moved = [layer for layer in range(3) if not torch.equal(
        state[f"{layers}.{layer}.mlp.fc1.weight"], tower[f"vision_model.encoder.layers.{layer}.mlp.fc1.weight"]
    )]  # fmt: skip
    assert moved == [0, 1]


LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "mm_projector_lr": 1e-4, "max_steps": 2}


def test_lora_writes_an_adapter_that_merges_onto_its_base(
    world: World, stage_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"init_from": stage_one, "data_path": world.folder / "chats.json"}
    train_tiny(world, tmp_path, monkeypatch, STAGE_TWO, LORA, flags)
    assert _files(tmp_path) >= {"adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"}
    assert "model.safetensors" not in _files(tmp_path)
    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    base = str(world.folder / "llama-tiny")
    _, model, _, _ = load_pretrained_model(str(tmp_path), base, "llava-lora", device="cpu", torch_dtype="float32")
    plain = read_state_dict(base)["model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(model.get_model().layers[0].self_attn.q_proj.weight, plain)


def test_learning_rates_of_parts_that_do_not_train_are_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"mm_projector_lr": 1e-4, "mole_lr": 1e-4, "adapter_lr": 1e-4, "mm_vision_tower_lr": 1e-5, "max_steps": 1}
    train_tiny(world, tmp_path, monkeypatch, STAGE_ONE, rates)
    printed = capsys.readouterr().out
    assert "--mm_projector_lr" not in printed
    for flag, part in (("mole_lr", "mole"), ("adapter_lr", "adapters"), ("mm_vision_tower_lr", "vision_tower")):
        assert f"--{flag} has no effect: {part} does not train" in printed


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_language_model_trains_its_adapter(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    flags = {"bits": bits, "data_path": world.folder / "chats.json", "learning_rate": 1e-2}
    train_tiny(world, tmp_path, monkeypatch, STAGE_TWO, LORA, flags)
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_a_language_model_trains_by_itself(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"data_path": world.folder / "texts.json", "output_dir": tmp_path, "version": "v1", "max_steps": 2}
    settings = {"model_name_or_path": world.folder / "llama-tiny", "model_max_length": 64}
    train_in_process(command_line(RUN_FLAGS, settings, flags), monkeypatch)
    assert "vision" not in " ".join(read_state_dict(tmp_path))
    assert len(losses(tmp_path)) == 2


def test_validation_is_logged_and_the_best_checkpoint_is_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = {"eval_split": 4, "evaluation_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    best = {"save_steps": 1, "save_total_limit": 1, "load_best_model_at_end": True, "max_steps": 3}
    train_tiny(world, tmp_path, monkeypatch, STAGE_ONE, evaluation, best)
    evaluated = [entry for entry in _history(tmp_path) if "eval_loss" in entry]
    assert [entry["eval_lm"] for entry in evaluated] == pytest.approx([entry["eval_loss"] for entry in evaluated])
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["best_metric"] == min(entry["eval_loss"] for entry in evaluated)
    kept = load_file(Path(state["best_model_checkpoint"]) / "trained_state.safetensors")
    assert torch.equal(_projector(tmp_path)[PROJECTOR], kept["student." + PROJECTOR])


def test_accumulated_batches_give_the_loss_of_one_large_batch(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = train_tiny(world, tmp_path / "large", monkeypatch, STAGE_ONE, {"per_device_train_batch_size": 4})
    small = train_tiny(world, tmp_path / "small", monkeypatch, STAGE_ONE, {"gradient_accumulation_steps": 2})
    # Captions have equally many tokens, so the mean of two means is the mean of all.
    assert losses(small) == pytest.approx(losses(large), rel=1e-3)


def test_new_image_tokens_are_trained_with_the_projector_and_handed_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {"mm_use_im_start_end": True, "max_steps": 1}
    first = train_tiny(world, tmp_path / "first", monkeypatch, STAGE_ONE, tokens)
    table = _projector(first)["model.embed_tokens.weight"]
    assert len(table) == 902
    frozen = {"init_from": first, "mm_tunable_parts": "mm_vision_tower", "data_path": world.folder / "chats.json"}
    second = train_tiny(world, tmp_path / "second", monkeypatch, STAGE_TWO, tokens, frozen)
    assert torch.equal(read_state_dict(second)["model.embed_tokens.weight"][900:], table[900:])


@pytest.mark.parametrize("distilled", [False, True], ids=["plain", "experts"])
def test_a_tower_that_stage_one_trained_is_handed_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], distilled: bool
) -> None:
    distill = _distill_flags(world, tmp_path) if distilled else {}
    parts = {"mm_tunable_parts": "mm_mlp_adapter,mm_vision_tower", "max_steps": 2}
    first = train_tiny(world, tmp_path / "first", monkeypatch, STAGE_ONE, distill, parts)
    still = {"mm_tunable_parts": "mm_language_model", "tune_encoder": False, "tune_encoder_adapter": False}
    flags = {"data_path": world.folder / "chats.json", "init_from": first, "max_steps": 1}
    second = train_tiny(world, tmp_path / "second", monkeypatch, STAGE_TWO, distill, still, flags)
    before, after = read_state_dict(first), read_state_dict(second)
    tower = [name for name in after if "vision_tower" in name]
    assert distilled == any(".moe_down." in name for name in tower)
    assert all(torch.equal(after[name], before[name]) for name in tower)
    pretrained = read_tower(str(world.folder / "clip-tiny"))
    assert any(not torch.equal(after[name], tensor) for name, tensor in pretrained.items() if name in after)
    assert "holds a whole student" not in capsys.readouterr().out
    light = {"data_path": world.folder / "captions.json", "init_from": first, "max_steps": 1}
    projector = train_tiny(world, tmp_path / "projector", monkeypatch, STAGE_ONE, distill, light)
    assert all(torch.equal(read_state_dict(projector)[name], before[name]) for name in pretrained if name in before)
    adapter = train_tiny(world, tmp_path / "lora", monkeypatch, STAGE_TWO, distill, LORA, flags)
    base = str(world.folder / "llama-tiny")
    _, model, _, _ = load_pretrained_model(str(adapter), base, "llava-lora", device="cpu", torch_dtype="float32")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], before[name]) for name in pretrained if name in before)
    older = {**flags, "init_from": "", "pretrain_mm_mlp_adapter": first / "mm_projector.bin"}
    train_tiny(world, tmp_path / "third", monkeypatch, STAGE_TWO, older)
    assert f"{first} holds a whole student; its vision tower is not used" in capsys.readouterr().out


def _distill_flags(world: World, folder: Path, *, recipe: str = "ours") -> dict[str, Any]:
    eva = make_eva(folder)
    return {
        "encoder_teachers": ["clip", f"eva:path={eva},size=64,heads=2"],
        "kd_recipe": recipe,
        "moe_encoder_lora_rank": 4,
        "max_steps": 2,
    }


@pytest.mark.parametrize("recipe", ["ours", "release"])
def test_both_stages_distill_and_hand_on_experts_and_adapters(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    distill = _distill_flags(world, tmp_path, recipe=recipe)
    first = train_tiny(world, tmp_path / "first", monkeypatch, STAGE_ONE, distill)
    assert _files(first) >= {"mm_projector.bin", "mole_encoder.bin", "encoder_adapter.bin"}
    flags = {"data_path": world.folder / "chats.json", "init_from": first, "tune_all": True, "finetune": True}
    second = train_tiny(world, tmp_path / "second", monkeypatch, STAGE_TWO, distill, flags)
    for entry in [*_history(first), *_history(second)]:
        if "loss" in entry:
            terms = entry["lm"] + entry["balance"] + entry["kd/clip"] + entry["kd/eva"]
            assert entry["loss"] == pytest.approx(terms, rel=1e-4)
    _, model, _, _ = load_pretrained_model(str(second), None, "move-kd", device="cpu")
    assert model.parts()["mole"]


@pytest.mark.parametrize(
    ("recipe", "switches"),
    [
        ("release", {}),
        ("release", {"moe_encoder_balance_w": 0.0}),
        ("ours", {"moe_layers": "all"}),
        ("ours", {"moe_gate": "top1", "moe_encoder_num_experts": 1}),
        ("release", {"kd_objectives": ["router_balance=1"], "moe_encoder_balance_w": 0.0}),
    ],
)
def test_every_trainable_parameter_gets_a_gradient_in_every_step(
    recipe: str, switches: dict[str, Any], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released recipe has experts in layers that nothing reads, its gate routers that nobody hears, an objective
    may leave teachers out: what no loss reaches must not be trained, or processes would wait for it."""
    from llava.train import llava_trainer

    missing: list[list[str]] = []

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super(llava_trainer.LLaVATrainer, self).training_step(*args, **kwargs)
        named = self.distiller.named_parameters()
        missing.append([name for name, value in named if value.requires_grad and value.grad is None])
        return loss

    monkeypatch.setattr(llava_trainer.LLaVATrainer, "training_step", training_step, raising=False)
    distill = _distill_flags(world, tmp_path, recipe=recipe)
    flags = {"data_path": world.folder / "chats.json", "tune_all": True, "max_steps": 4}
    train_tiny(world, tmp_path / "out", monkeypatch, STAGE_TWO, distill, flags, switches)
    assert missing == [[]] * 4


def test_teachers_alone_bring_experts_that_are_trained(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--encoder_teachers` on an ordinary run is enough."""
    distill = _distill_flags(world, tmp_path)
    out = train_tiny(
        world, tmp_path / "out", monkeypatch, STAGE_TWO, distill, {"data_path": world.folder / "chats.json"}
    )
    down = [value for name, value in read_state_dict(out).items() if ".moe_down." in name and "lora_B.weight" in name]
    assert down
    assert any(value.abs().max() > 0 for value in down)


def test_a_compiled_tower_trains_to_the_same_losses(
    world: World, stage_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = train_tiny(world, tmp_path, monkeypatch, STAGE_ONE, {"torch_compile_backend": "eager"})
    assert losses(out) == pytest.approx(losses(stage_one), rel=1e-5)
