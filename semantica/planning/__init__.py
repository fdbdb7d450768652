"""The needs of an experiment before it starts: FLOPs, memory, storage, bandwidth, hours, cost and pairs."""
