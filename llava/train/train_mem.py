"""`train.py` with FlashAttention 2 where it is installed, and PyTorch's own fused attention where it is not."""

from llava.train.train import main

if __name__ == "__main__":
    main(attn_implementation="flash_attention_2")
