"""Several checkpoints and seeds in one table: python scripts/eval/compare.py [NAME=]PATH [NAME=]PATH ... [--help]"""

from llava.errors import readable_errors
from llava.eval.compare import main

if __name__ == "__main__":
    with readable_errors():
        main()
