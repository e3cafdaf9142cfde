"""The paper's figures as commands, `minidora experiments run NAME`, resumable and verifiable.

One module an experiment (`registry` lists them): its configuration, what its seeds come to, and its
table. A configuration (`experiment`) names networks and runs. For every seed `runs.measure` takes a
pretrained network, adapts and tunes it and measures; `store` keeps each finished seed in a JSON
file; `summaries` and `tables` have what several experiments share; `verify` runs a seed anew.
`sentences` has two tasks on real texts, out of pinned `archives`.
"""
