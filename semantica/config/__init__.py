"""Configurations: the strict door, what of them decides a result (`identity.py`), and parts that are registered (`registry.py`)."""

from semantica.config.door import (
    added,
    config,
    config_hash,
    fail,
    free,
    from_args,
    from_dict,
    override,
    read_yaml,
    require,
    take_flag,
    to_dict,
    to_yaml,
)

__all__ = [
    "added",
    "config",
    "config_hash",
    "fail",
    "free",
    "from_args",
    "from_dict",
    "override",
    "read_yaml",
    "require",
    "take_flag",
    "to_dict",
    "to_yaml",
]
