"""One piece of a playground run: the data, the language model, the CLIP, a teacher, or what the teachers say.

python -m playground.make language --recipe quick --out playground/out
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from playground import clip, language, llava_data, teachers
from playground.features import write_cache
from playground.recipe import RECIPES, Recipe
from playground.stages import teacher_specs


def make_piece(piece: str, recipe: Recipe, out: Path, kinds: Sequence[str]) -> None:
    """kinds: of the teachers to make."""
    if piece == "data":
        llava_data.write_data(out / "data", recipe.world, recipe.data)
    elif piece == "language":
        accuracy = language.train(recipe.language, recipe.world, out / "language")
        print("on symbolic scenes: " + ", ".join(f"{kind} {value:.0%}" for kind, value in accuracy.items()))
    elif piece == "teachers":
        for kind in kinds:
            quality = teachers.train(kind, recipe.teachers.of(kind), recipe.world, out / "teachers" / kind)
            print(f"{kind}: " + ", ".join(f"{skill} {value:.1%}" for skill, value in quality.items()))
    elif piece == "cache":
        write_cache(out, recipe, ["clip", *teacher_specs(out, recipe)], out / "cache")
    else:
        recall = clip.train(recipe.clip, recipe.world, out / "clip")
        print(f"finds the right one of 500 captions for {recall:.1%} of pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=("data", "language", "clip", "teachers", "cache"))
    parser.add_argument("--teachers", nargs="+", choices=teachers.KINDS, default=teachers.KINDS, help="which of them")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="quick")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    make_piece(options.piece, RECIPES[options.recipe], options.out, options.teachers)


if __name__ == "__main__":
    main()
