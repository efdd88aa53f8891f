"""Run a training run's teachers over its data once and store their features; see llava/train/cache_teachers.py.

python scripts/cache_teachers.py <flags of the training run> --teacher_cache DIR [--pool 24x24] [--dry_run]
torchrun --nproc_per_node 8 scripts/cache_teachers.py ...
"""

from llava.train.cache_teachers import main

if __name__ == "__main__":
    main()
