"""The evidence that every hand-derived gradient is right: witnesses, cases, comparisons."""
