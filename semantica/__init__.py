"""Image-conditioned diffusion from a crawl of web pages, on Ray (the paper "Semantica", arXiv 2405.14857).

What users may rely on; everything else may change between versions:

- the commands `semantica X` (and `python -m jobs.X` of a checkout), their flags and the YAML they take;
- the Arrow schemas of `semantica.data.schemas` and the manifests of `semantica.data.dataset`;
- `semantica.presets.preset(name)` and `semantica.config`: `from_dict`, `to_dict`, `to_yaml`, `override`;
- the shells `semantica.distributed.{ingest,encode,pairs,train,generate,evaluate,quickstart}`: one function each, of the same name;
- `semantica.load(path)`, a trained model to draw with (docs/guides/use-a-model.md), and the released folder that it saves;
- `semantica.training.checkpoint.open_checkpoint(folder)`, which gives the configuration and the network;
- the contract `semantica.diffusion.process.Denoise`, the samplers and the guidance built on it.

Importing this package imports nothing else; `load` is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semantica.applications.editor import load as load


def __getattr__(name: str) -> Any:
    """`semantica.load`."""
    if name == "load":
        from semantica.applications.editor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
