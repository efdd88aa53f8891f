"""Cached features: equal to the bit, resumable, written in parallel, and refused whenever they might be wrong."""

import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.model.multimodal_encoder.move_kd import cache_writer
from llava.model.multimodal_encoder.move_kd.cache import (
    CacheError,
    TeacherCache,
    describe,
    reduce_features,
    sample_key,
)
from llava.model.multimodal_encoder.move_kd.cache_lookup import open_cached_teachers, parse_location
from llava.model.multimodal_encoder.move_kd.cache_writer import CacheWriter, estimate
from llava.model.multimodal_encoder.move_kd.teachers import Teacher, build_teachers
from llava.model.multimodal_encoder.move_kd.teachers.base import FrozenTeacher
from llava.model.multimodal_encoder.move_kd.types import View, stack
from tests.tiny_teachers import make_case


def views(count: int, first: int = 0) -> list[View]:
    made = []
    for index in range(first, first + count):
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randint(0, 256, (20, 30, 3), generator=generator, dtype=torch.uint8)
        made.append(View(Image.fromarray(pixels.numpy()), "pad", key=f"picture {index}"))
    return made


def live(spec: str, dtype: torch.dtype = torch.float32) -> FrozenTeacher:
    (teacher,) = build_teachers([spec], dtype=dtype).values()
    assert isinstance(teacher, FrozenTeacher)
    return teacher


def prepared(teacher: Teacher, shown: list[View]) -> torch.Tensor:
    return stack([teacher.source.prepare(view) for view in shown])


def write(
    root: Path, teacher: FrozenTeacher, shown: list[View], pooled: tuple[int, int] | None = None, **settings: int
) -> Path:
    manifest, blank = describe(teacher, pooled)
    with CacheWriter(root, manifest, blank, **settings) as writer:
        for view in shown:
            [sample] = reduce_features(teacher(prepared(teacher, [view])), pooled)
            writer.add(sample_key(view), sample)
    return writer.folder


@pytest.mark.parametrize("name", ["clip", "sam", "eva", "dinov2_registers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_features_equal_the_live_ones_to_the_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    spec = make_case(name, tmp_path)
    teacher = live(spec, dtype)
    write(tmp_path / "cache", teacher, views(5))
    (cached,) = open_cached_teachers([spec], str(tmp_path / "cache"), dtype=dtype).values()
    one, two = teacher(prepared(teacher, views(5))), cached(prepared(cached, views(5)))
    assert two.grid == cached.grid == teacher.grid
    for expected, found in zip(one, two, strict=True):
        if isinstance(expected, torch.Tensor):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
        else:
            assert found == expected


def test_the_blank_is_what_the_live_teacher_says_about_one(tmp_path: Path) -> None:
    spec = make_case("clip", tmp_path)
    teacher = live(spec)
    write(tmp_path / "cache", teacher, views(1))
    (cached,) = open_cached_teachers([spec], str(tmp_path / "cache")).values()
    expected = teacher(teacher.source.blank()[None])
    found = cached(stack([cached.source.blank()]))
    assert torch.equal(found.patches, expected.patches)
    assert torch.equal(found.cls_attention, expected.cls_attention)
    assert len(cached.cache) == 1


def test_features_travel_as_integers_so_that_nothing_rounds_them(tmp_path: Path) -> None:
    spec = make_case("clip", tmp_path)
    teacher = live(spec)
    write(tmp_path / "cache", teacher, views(1))
    (cached,) = open_cached_teachers([spec], str(tmp_path / "cache")).values()
    assert not any(value.is_floating_point() for value in cached.source.prepare(views(1)[0]).values())


def test_equal_pictures_share_a_sample_and_cuts_do_not() -> None:
    view = views(1)[0]
    assert sample_key(view) == sample_key(views(1)[0])
    assert sample_key(view) != sample_key(View(view.image, "crop", view.key))
    assert sample_key(View(view.image, "pad")) == sample_key(View(view.image.copy(), "pad"))
    assert sample_key(View(view.image, "pad")) != sample_key(View(view.image.rotate(180), "pad"))


def test_data_workers_may_be_forked_or_spawned(tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    teacher = live(spec)
    folder = write(tmp_path / "cache", teacher, views(3))
    cache = TeacherCache(folder)
    cache.read(sample_key(views(1)[0]))
    copied = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copied.read(sample_key(views(1)[0]))["patches"], cache.read(sample_key(views(1)[0]))["patches"])


def test_a_killed_writing_resumes_where_it_stopped(tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    teacher = live(spec)
    manifest, blank = describe(teacher)
    size = 2 * manifest.bytes_per_sample
    writer = CacheWriter(tmp_path, manifest, blank, shard_bytes=size)
    for view in views(4):
        writer.add(sample_key(view), reduce_features(teacher(prepared(teacher, [view])), None)[0])
    writer.close()  # killed: one sample was pending, no mark was left
    (writer.folder / ".shard-000-00002.safetensors.1.tmp").write_bytes(b"half")
    with pytest.raises(CacheError, match=r"is not complete: none of its writers finished"):
        TeacherCache(writer.folder)
    again = CacheWriter(tmp_path, manifest, blank, shard_bytes=size)
    assert [sample_key(view) in again.known for view in views(4)] == [True, True, True, False]
    again.close()
    folder = write(tmp_path, teacher, views(6), shard_bytes=size)
    cache = TeacherCache(folder)
    cache.verify()
    assert len(cache) == 6
    assert not list(folder.glob("*.tmp"))
    for view in views(6):
        assert torch.equal(cache.read(sample_key(view))["patches"], teacher(prepared(teacher, [view])).patches[0])


def _write_share(root: Path, spec: str, writer: int, writers: int) -> None:
    teacher = live(spec)
    write(root, teacher, views(9)[writer::writers], writer=writer, writers=writers)


def test_several_processes_write_shards_of_their_own(tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_share, args=(tmp_path / "cache", spec, index, 3)) for index in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    (cached,) = open_cached_teachers([spec], str(tmp_path / "cache")).values()
    assert len(cached.cache) == 9
    teacher = live(spec)
    expected = teacher(prepared(teacher, views(9))).patches
    assert torch.equal(cached(prepared(cached, views(9))).patches, expected)


def test_a_missing_writer_makes_the_cache_incomplete(tmp_path: Path) -> None:
    teacher = live(make_case("sam", tmp_path))
    folder = write(tmp_path / "cache", teacher, views(2), writer=0, writers=2)
    with pytest.raises(CacheError, match="1 of 2 of its writers finished"):
        TeacherCache(folder)
    write(tmp_path / "cache", teacher, views(2, first=2), writer=1, writers=2)
    assert len(TeacherCache(folder)) == 4


def test_another_number_of_writers_may_finish_the_work(tmp_path: Path) -> None:
    teacher = live(make_case("sam", tmp_path))
    write(tmp_path / "cache", teacher, views(2, first=2), writer=1, writers=2)
    folder = write(tmp_path / "cache", teacher, views(4))
    assert len(TeacherCache(folder)) == 4


def test_one_writer_runs_once(tmp_path: Path) -> None:
    teacher = live(make_case("sam", tmp_path))
    manifest, blank = describe(teacher)
    writer = CacheWriter(tmp_path / "cache", manifest, blank)
    with pytest.raises(CacheError, match="is running already"):
        CacheWriter(tmp_path / "cache", manifest, blank)
    writer.close()


def cut_shard(folder: Path) -> None:
    shard = next(folder.glob("shard-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])


def remove_shard(folder: Path) -> None:
    next(folder.glob("shard-*.safetensors")).unlink()


def remove_listing(folder: Path) -> None:
    next(folder.glob("shard-*.json")).unlink()


def rename_folder(folder: Path) -> None:
    folder.rename(folder.with_name("sam-0123456789abcdef"))


def edit_manifest(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["digest"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(content))


def older_format(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"format": 0}))


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_shard, r"bytes instead of .*: cut or overwritten"),
        (remove_shard, "is not whole"),
        (remove_listing, "is not whole"),
        (rename_folder, "renamed or edited"),
        (edit_manifest, "renamed or edited"),
        (older_format, "has another format"),
        (empty_manifest, "is no teacher cache"),
    ],
)
def test_a_damaged_or_foreign_cache_is_refused(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    damage(write(tmp_path / "cache", live(spec), views(2)))
    with pytest.raises(CacheError, match=message):
        open_cached_teachers([spec], str(tmp_path / "cache"))


def flip_bit(folder: Path) -> None:
    shard = next(folder.glob("shard-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)


def cut_listing(folder: Path) -> None:
    listing = next(folder.glob("shard-*.json"))
    listing.write_text(listing.read_text()[:50])


def test_a_flipped_bit_is_found_when_its_sample_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "cache", live(make_case("sam", tmp_path)), views(2))
    flip_bit(folder)
    cache = TeacherCache(folder)
    with pytest.raises(CacheError, match="sha256 differs"):
        cache.verify()
    with pytest.raises(CacheError, match="checksum differs"):
        read_all(cache)


def read_all(cache: TeacherCache) -> None:
    for key in cache.places:
        cache.read(key)


@pytest.mark.parametrize("damage", [cut_shard, remove_shard, flip_bit, cut_listing])
def test_damaged_shards_are_written_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    teacher = live(make_case("sam", tmp_path))
    folder = write(tmp_path / "cache", teacher, views(2))
    damage(folder)
    write(tmp_path / "cache", teacher, views(2))
    cache = TeacherCache(folder)
    cache.verify()
    read_all(cache)
    assert len(cache) == 2


def test_a_stale_cache_is_refused_with_what_differs(tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    write(tmp_path / "cache", live(spec), views(1))
    cases = {
        spec + ",dtype=bf16": "dtype float32, the run dtype bfloat16",
        spec + ",mean=clip": r"source 64px_student_123-116-103, the run source",
        spec + ",fit=crop": "the run source 64px_crop",
        spec + ",layout=upstream": r"options \{'layout': 'true'\}, the run options \{'layout': 'upstream'\}",
    }
    for changed, message in cases.items():
        with pytest.raises(CacheError, match=message):
            open_cached_teachers([changed], str(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "sam")
    other = make_case("sam", tmp_path)
    from tests.move_kd.test_teacher_weights import edit

    edit(tmp_path / "sam", lambda state: state["vision_encoder.pos_embed"].add_(1e-3))
    with pytest.raises(CacheError, match=r"weights [0-9a-f]{12}, the run weights [0-9a-f]{12}"):
        open_cached_teachers([other], str(tmp_path / "cache"))


def test_another_version_of_a_teachers_code_makes_its_cache_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_case("sam", tmp_path)
    teacher = live(spec)
    write(tmp_path / "cache", teacher, views(1))
    before = type(teacher).version
    monkeypatch.setattr(type(teacher), "version", before + 1)
    with pytest.raises(CacheError, match=f"version {before}, the run version {before + 1}"):
        open_cached_teachers([spec], str(tmp_path / "cache"))


def test_a_spec_that_vouches_for_the_digest_needs_no_weights(tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    teacher = live(spec)
    write(tmp_path / "cache", teacher, views(1))
    shutil.rmtree(tmp_path / "sam")
    vouched = f"sam:size=64,digest={teacher.digest[:16]}"
    (cached,) = open_cached_teachers([vouched], str(tmp_path / "cache")).values()
    assert cached.digest == teacher.digest
    with pytest.raises(CacheError, match="the run weights 000000000000"):
        open_cached_teachers(["sam:size=64,digest=000000000000"], str(tmp_path / "cache"))


def test_a_vouched_digest_leaves_every_other_check_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eva teacher is 64 px by its spec, 1024 px by default; its weights are the same at either size."""
    spec = make_case("eva", tmp_path)
    teacher = live(spec)
    write(tmp_path / "cache", teacher, views(1))
    vouched = f"{spec},digest={teacher.digest[:16]}"
    cases = {
        vouched.replace("size=64", "size=128"): "the run source 128px",
        vouched.replace("size=64,", ""): "the run source 1024px",
        f"{vouched},fit=crop": "the run source 64px_crop",
        f"{vouched},mean=half": "the run source 64px_student_127-127-127",
        f"{vouched},window=4": "the run options .*'window': '4'",
    }
    for changed, message in cases.items():
        with pytest.raises(CacheError, match=message):
            open_cached_teachers([changed], str(tmp_path / "cache"))
    with pytest.raises(CacheError, match="the run source 64px_student_122-116-104"):
        open_cached_teachers([vouched], str(tmp_path / "cache"), released=True)
    assert open_cached_teachers([vouched], str(tmp_path / "cache"))["eva"].digest == teacher.digest
    before = type(teacher).version
    monkeypatch.setattr(type(teacher), "version", before + 1)
    with pytest.raises(CacheError, match=f"version {before}, the run version {before + 1}"):
        open_cached_teachers([vouched], str(tmp_path / "cache"))


def test_of_several_caches_of_one_digest_the_fitting_one_is_found(tmp_path: Path) -> None:
    """What only the checkpoint knows, as CLIP's own size, comes from the cache; two of them need a word more."""
    spec = make_case("clip", tmp_path)
    for size in (28, 14, 21):
        teacher = live(f"{spec},size={size}")
        write(tmp_path / "cache", teacher, views(1))
        vouched = f"clip:digest={teacher.digest[:16]}"
        (cached,) = open_cached_teachers([f"{vouched},size={size}"], str(tmp_path / "cache")).values()
        assert cached.grid == teacher.grid == (size // 7, size // 7)
        if size == 28:
            assert open_cached_teachers([vouched], str(tmp_path / "cache"))["clip"].grid == (4, 4)
    with pytest.raises(CacheError, match=r"all fit teacher 'clip'; add size="):
        open_cached_teachers([vouched], str(tmp_path / "cache"))
    with pytest.raises(CacheError, match=r"options \{'layer': '2'\}, the run options \{'layer': '1'\}"):
        open_cached_teachers([f"{vouched},layer=1"], str(tmp_path / "cache"))


def test_missing_caches_and_teachers_are_named(tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    with pytest.raises(CacheError, match="there is no teacher cache"):
        open_cached_teachers([spec], str(tmp_path / "cache"))
    write(tmp_path / "cache", live(spec), views(1))
    with pytest.raises(CacheError, match=r"there are caches of \['sam'\] only"):
        open_cached_teachers([make_case("dinov2", tmp_path)], str(tmp_path / "cache"))


def test_a_picture_the_cache_does_not_know_is_named(tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    write(tmp_path / "cache", live(spec), views(1))
    (cached,) = open_cached_teachers([spec], str(tmp_path / "cache")).values()
    with pytest.raises(CacheError, match="does not hold picture 5: it was written from other data"):
        cached.source.prepare(views(1, first=5)[0])


def test_pooled_features_are_averages_and_used_only_when_asked_for(tmp_path: Path) -> None:
    spec = make_case("clip", tmp_path)
    teacher = live(spec)
    folder = write(tmp_path / "cache", teacher, views(2), pooled=(2, 2))
    assert json.loads((folder / "manifest.json").read_text())["pooled"] == [2, 2]
    with pytest.raises(CacheError, match="features pooled to 2x2, the run exact features"):
        open_cached_teachers([spec], str(tmp_path / "cache"))
    (cached,) = open_cached_teachers([spec], f"{tmp_path / 'cache'},pool=2x2").values()
    found, exact = cached(prepared(cached, views(2))), teacher(prepared(teacher, views(2)))
    assert cached.grid == found.grid == (2, 2)
    squares = exact.patches.view(2, 2, 2, 2, 2, 32).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(found.patches, squares)
    torch.testing.assert_close(found.cls, exact.cls)
    torch.testing.assert_close(found.cls_attention.sum(1), exact.cls_attention.sum(1))
    with pytest.raises(ValueError, match="cannot be pooled to"):
        describe(teacher, (5, 5))


def test_exact_and_pooled_caches_lie_side_by_side(tmp_path: Path) -> None:
    spec = make_case("sam", tmp_path)
    write(tmp_path / "cache", live(spec), views(1), pooled=(2, 2))
    write(tmp_path / "cache", live(spec), views(1))
    assert open_cached_teachers([spec], str(tmp_path / "cache"))["sam"].grid == (4, 4)
    assert open_cached_teachers([spec], f"{tmp_path / 'cache'},pool=2x2")["sam"].grid == (2, 2)


def test_the_location_says_whether_pooled_features_are_wanted() -> None:
    assert parse_location("/data/cache") == (Path("/data/cache"), None)
    assert parse_location("/data/cache,pool=24x12") == (Path("/data/cache"), (24, 12))
    for wrong in ("/data,grid=2x2", "/data,pool=24", "/data,pool=0x4"):
        with pytest.raises(ValueError, match=r"is not understood|is no grid"):
            parse_location(wrong)


def test_the_size_is_told_before_anything_is_written_and_refused_if_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, _ = describe(live(make_case("sam", tmp_path)))
    assert manifest.bytes_per_sample == 16 * 16 * 4
    found = estimate({"sam": manifest}, 1000, tmp_path / "new" / "cache")
    assert "1.02 kB" in found.table
    assert "1,000 pictures need 1.02 MB more" in found.table
    assert not (tmp_path / "new").exists()
    found.check()
    monkeypatch.setattr(cache_writer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10**6))
    with pytest.raises(ValueError, match="not enough space"):
        estimate({"sam": manifest}, 1000, tmp_path).check()
    write(tmp_path, live(make_case("sam", tmp_path)), views(30))
    estimate({"sam": manifest}, 1000, tmp_path).check()
