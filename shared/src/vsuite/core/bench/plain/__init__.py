"""Plain forms of the models: the official structure written out, as baselines of the benchmark and oracles of the tests."""
