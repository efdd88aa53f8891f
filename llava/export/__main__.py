"""The command line: `python -m llava.export {hf,encoder,merge} -h`."""

import argparse
import sys
from collections.abc import Sequence

from llava.export.native import ENGINES
from llava.model.checkpoint_io import CheckpointError

EPILOG = f"""\
hf       plain models become LlavaForConditionalGeneration or LlavaNextForConditionalGeneration of transformers;
         MoVE-KD students become a subclass of it whose code is written beside the weights (trust_remote_code=True)
encoder  the vision tower alone: CLIPVisionModel, SiglipVisionModel, or with experts ClipMoleVisionModel
merge    a LoRA into its base, in LLaVA's own format; hf does the same on the way when it is given --model-base

What is written is loaded again and compared: prompts, token ids, pixels, and logits or features.
Engines that know vision towers of CLIP's kind only ({ENGINES}) cannot serve a model with experts: each patch of each
picture chooses its own, so they cannot be folded into CLIP's weights. Plain models they can serve."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.export", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help in (("hf", "a whole model for transformers"), ("encoder", "the vision tower alone")):
        command = commands.add_parser(name, help=help, epilog=EPILOG, formatter_class=parser.formatter_class)
        _add_paths(command)
        command.add_argument("--dtype", default=None, help="float32, float16 or bfloat16; default: the checkpoint's")
        command.add_argument("--device", default="auto", help="where the comparison runs: auto, cpu, cuda, cuda:1")
        if name == "hf":
            command.add_argument("--conv-mode", default=None, help="conversation template; default: the checkpoint's")
    merge = commands.add_parser("merge", help="a LoRA into its base")
    _add_paths(merge, needs_base=True)
    merge.add_argument("--any-base", action="store_true", help="do not compare the base's name with the adapter's")
    return parser


def _add_paths(command: argparse.ArgumentParser, needs_base: bool = False) -> None:
    command.add_argument("--model-path", required=True, help="checkpoint of any layout: directory or hub name")
    command.add_argument("--model-base", required=needs_base, default=None, help="base of a LoRA or a projector")
    command.add_argument("--output", required=True, help="directory to write")


def main(argv: Sequence[str] | None = None) -> None:
    """Exits with one line for what cannot be exported."""
    args = build_parser().parse_args(argv)
    try:
        _run(args)
    except (CheckpointError, ValueError, OSError) as error:
        sys.exit(f"llava.export {args.command}: {error}")


def _run(args: argparse.Namespace) -> None:
    if args.command == "merge":
        from llava.export.merge import merge_lora

        merge_lora(args.model_path, args.model_base, args.output, args.any_base)
        return
    from llava.export.encoder import export_encoder
    from llava.export.hf import Source, export_hf

    source = Source(args.model_path, args.model_base, args.dtype, args.device)
    if args.command == "encoder":
        export_encoder(source, args.output)
        return
    export_hf(Source(**(vars(source) | {"template": args.conv_mode})), args.output)


if __name__ == "__main__":
    main()
