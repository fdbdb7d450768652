"""What must be right before a stage starts: small checks that each say what was found and what to do. Nothing here knows Ray."""
