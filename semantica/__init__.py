"""Image-conditioned diffusion from a crawl of web pages, on Ray (the paper "Semantica", arXiv 2405.14857)."""
