"""Several checkpoints and seeds in one table: python scripts/eval/compare.py [NAME=]PATH [NAME=]PATH ... [--help]"""

from llava.eval.compare import main

if __name__ == "__main__":
    main()
