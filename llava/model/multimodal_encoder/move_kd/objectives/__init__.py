"""Every file here that is not `base.py` and has no leading underscore is an objective; see `base.py`."""
