"""The frozen networks that measure pictures."""
