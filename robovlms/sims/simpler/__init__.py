"""SimplerEnv: robots that really recorded Bridge and Fractal, rebuilt in simulation."""
