"""What an experiment takes before it is launched: arithmetic, memory, storage, bandwidth, hours, cost, pairs."""
