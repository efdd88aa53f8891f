"""A small drawn world on which the whole of LLaVA can be trained and judged on two CPU cores."""
