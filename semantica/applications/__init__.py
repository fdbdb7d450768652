"""What is built on a trained model, one file a paper: editing, inpainting, super-resolution, other guidance, inversion.

Every application works on the `Denoise` contract of `semantica.diffusion.process`, (z, logsnr) -> x_hat, which `Model.bind` returns
for a conditioning: it wraps a Denoise into another, starts from another z or another level, or edits z after a step through a
sampler's callback. None is built yet.
"""
