"""What is built on a trained model, one file per paper: editing, inpainting, variations, inversion.

Every application works on the `Denoise` contract of `semantica.diffusion.process`, (z, logsnr) -> x_hat, which `Model.bind` returns
for a conditioning: it wraps a Denoise into another, starts from another z or another level, or edits z after a step through a
sampler's callback. An application is a function whose first parameter is the model; it is a method of `editor.Editor`, which
`semantica.load` returns.
"""
