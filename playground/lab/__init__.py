"""The lab: arms and seeds of distillation on the playground's world, trained, compared and drawn."""
