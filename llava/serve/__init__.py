"""Talking to a model: a one-process demo, a terminal chat, and controller, workers and web page as processes."""
