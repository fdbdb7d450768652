"""Python imports this in every process that the tests start: the Rays of these processes get warm workers too."""

import importlib.abc
import importlib.util
import sys

NAME = "ray._private.services"


class Finder(importlib.abc.MetaPathFinder):
    """Changes the module when it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            from warm_workers import use_warm_workers

            use_warm_workers(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
