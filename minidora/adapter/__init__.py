"""A doctor for adapter files, of PEFT, mlx-lm, LyCORIS, kohya and minidora.

`tensors` reads safetensors files a few rows at a time where they lie, `formats` knows which array
is whose, `findings` says what is wrong with an adapter, `report` what it does to a model. Nothing
is ever unpickled. Needs `pip install safetensors`.
"""
