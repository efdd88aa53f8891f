"""Kept for launch scripts of LLaVA 1.5: memory-efficient attention is part of PyTorch now (sdpa)."""

from llava.train.train import main

if __name__ == "__main__":
    main(attn_implementation="sdpa")
