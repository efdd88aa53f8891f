"""Taking a model elsewhere: transformers' own classes, an encoder alone, a merged LoRA. `python -m llava.export -h`."""
