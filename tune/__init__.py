"""Sweeps over patching, learning rate and band (Ray Tune). None is built yet: see the README's limits.

A trial will be `semantica.distributed.train.train` with `semantica.config.override(train_config, {...})`; a band is a view
(`semantica.pairs.selection`), so no trial encodes or copies anything.
"""
