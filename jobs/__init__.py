"""The commands: each parses its words and makes one call. Nothing defined here travels to a worker."""
