"""One piece of a playground run: the data, the language model, the CLIP, or a teacher.

python -m playground.make language --recipe quick --out playground/out
"""

import argparse
from pathlib import Path

from playground import clip, language, llava_data, teachers
from playground.recipe import RECIPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=("data", "language", "clip", "teachers"))
    parser.add_argument("--teachers", nargs="+", choices=teachers.KINDS, default=teachers.KINDS, help="which of them")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="quick")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    recipe = RECIPES[options.recipe]
    if options.piece == "data":
        llava_data.write_data(options.out / "data", recipe.world, recipe.data)
    elif options.piece == "language":
        accuracy = language.train(recipe.language, recipe.world, options.out / "language")
        print("on symbolic scenes: " + ", ".join(f"{kind} {value:.0%}" for kind, value in accuracy.items()))
    elif options.piece == "teachers":
        for kind in options.teachers:
            quality = teachers.train(kind, recipe.teachers.of(kind), recipe.world, options.out / "teachers" / kind)
            print(f"{kind}: " + ", ".join(f"{skill} {value:.1%}" for skill, value in quality.items()))
    else:
        recall = clip.train(recipe.clip, recipe.world, options.out / "clip")
        print(f"finds the right one of 500 captions for {recall:.1%} of pictures")


if __name__ == "__main__":
    main()
