"""First stage of the flow, page -> Episode: pages come in from `sources/`, episodes and a quarantine table go out of `ingest`."""
