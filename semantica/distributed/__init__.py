"""Every line that knows Ray. A shell names resources and calls a pure function; it holds no decision of its own."""
