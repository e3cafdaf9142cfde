"""The paper's figures as commands: `minidora experiments run figure2`, and so on.

Each experiment is a list of runs a seed: a network is pretrained, adapted, tuned and measured
(`runs`), for every seed, in resumable fashion (`store`), and summed up (`summaries`). What it runs
is a plain dict, its configuration (`configs`), which the JSON file of the results holds too.
"""
