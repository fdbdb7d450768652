"""Image -> tokens and pooled embedding, by a frozen pretrained encoder."""
