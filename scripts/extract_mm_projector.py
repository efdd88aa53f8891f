"""The projector of a full checkpoint as mm_projector.bin.

python scripts/extract_mm_projector.py --model-path DIR --output FILE
"""

import argparse
import sys
from pathlib import Path

from llava.model.checkpoint import CheckpointError, read_state_dict, upgrade_state_dict
from llava.model.checkpoint_io import write_bin
from llava.model.checkpoint_names import PROJECTOR
from llava.model.checkpoint_parts import PROJECTOR_FILE


def extract_projector(model_path: str, output: str) -> Path:
    """Write the projector's tensors to the file `output`, or to mm_projector.bin in the directory `output`."""
    state = upgrade_state_dict(read_state_dict(model_path))
    projector = {name: tensor for name, tensor in state.items() if name.startswith(PROJECTOR)}
    if not projector:
        raise CheckpointError(f"{model_path} holds no projector (no name starts with {PROJECTOR}).")
    file = Path(output) if Path(output).suffix else Path(output) / PROJECTOR_FILE
    write_bin(projector, file)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True, help="full checkpoint, any layout")
    parser.add_argument("--output", required=True, help="file to write, or a directory")
    args = parser.parse_args()
    try:
        print(f"saved {extract_projector(args.model_path, args.output)}")
    except (CheckpointError, OSError) as error:
        sys.exit(f"extract_mm_projector: {error}")


if __name__ == "__main__":
    main()
