"""What is built on a trained model, one file a paper: editing, inpainting, super-resolution, other guidance, inversion.

Every application works on the `Denoise` contract of `semantica.diffusion.process`: it wraps a Denoise into another, starts from
another z, or edits z after a step through a sampler's callback. None is built yet.
"""
