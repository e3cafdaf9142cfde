"""Adapters of real implementations, to run the kit against and to write one's own after."""
